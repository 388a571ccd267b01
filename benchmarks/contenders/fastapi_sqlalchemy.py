import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi_http import app
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

URLS = {
    "sqlite": f"sqlite+aiosqlite:///{os.environ['BENCH_SQLITE']}",
    # Host and user come from PGHOST and PGUSER.
    "postgresql": "postgresql+asyncpg:///postgres",
}

# As many as the load generator has connections, so that none waits for the pool.
engine = create_async_engine(URLS[os.environ["BENCH_DATABASE"]], pool_size=16)
new_session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


async def session() -> AsyncIterator[AsyncSession]:
    async with new_session() as opened:
        yield opened


@app.get("/items/{pk}")
async def item_view(
    pk: int, session: Annotated[AsyncSession, Depends(session)]
) -> dict[str, int | str]:
    item = await session.get(Item, pk)
    if item is None:
        raise HTTPException(404)
    return {"id": item.id, "name": item.name}
