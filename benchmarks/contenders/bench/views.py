from django.http import Http404, HttpRequest, JsonResponse

from .models import Item


async def json_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"hello": "world"})


def sync_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"hello": "world"})


async def item_view(request: HttpRequest, pk: int) -> JsonResponse:
    try:
        item = await Item.objects.aget(pk=pk)
    except Item.DoesNotExist as missing:
        raise Http404 from missing
    return JsonResponse({"id": item.pk, "name": item.name})
