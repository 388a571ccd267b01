import pytest
from django.conf import settings
from django.test import AsyncClient
from django.urls import reverse

from users.models import User


@pytest.mark.django_db
async def test_user_logs_in_to_the_admin(async_client: AsyncClient) -> None:
    await User.objects.acreate_superuser("me", password="secret")
    page = reverse("admin:users_user_changelist")
    login = (await async_client.get(page)).headers["Location"]
    assert login.partition("?")[0] == reverse(settings.LOGIN_URL)
    form = {"username": "me", "password": "secret"}
    assert (await async_client.post(login, form)).headers["Location"] == page
    assert (await async_client.get(page)).status_code == 200
