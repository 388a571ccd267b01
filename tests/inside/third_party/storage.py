from django.contrib.messages.storage.cookie import CookieStorage


class Storage(CookieStorage):
    pass
