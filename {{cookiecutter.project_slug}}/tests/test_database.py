import pytest
from asgiref.sync import sync_to_async
from django.db import connection


@sync_to_async
def write_and_read() -> object:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE note (text varchar(20))")
        cursor.execute("INSERT INTO note VALUES ('hello')")
        cursor.execute("SELECT text FROM note")
        return cursor.fetchall()


@pytest.mark.django_db
@pytest.mark.parametrize("turn", [1, 2])
async def test_database_answers_and_a_test_leaves_nothing_in_it(turn: int) -> None:
    # Otherwise the second turn could not create the table again.
    assert await write_and_read() == [("hello",)]
