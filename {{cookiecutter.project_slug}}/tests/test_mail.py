from django.core import mail


def test_mail_of_a_test_is_kept_and_not_sent() -> None:
    mail.send_mail("Hello", "You", None, ["you@example.com"])
    assert [message.subject for message in mail.outbox] == ["Hello"]
