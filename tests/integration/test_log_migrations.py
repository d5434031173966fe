"""The schema: made at once or by Alembic it is the same, and the revisions are shipped."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import sqlalchemy

from tests.data.event_samples import records
from vpccni.adapters import log_schema
from vpccni.adapters.log_format import SCHEMA_VERSION
from vpccni.adapters.log_sqlite import SqliteLog
from vpccni.errors import InvariantBrokenError, PermanentError, Reason
from vpccni.model import Seq

ROOT = Path(__file__).parents[2]
SECOND = '''"""A later revision, for tests."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    op.execute("CREATE TABLE later (x INTEGER)")
    op.execute("PRAGMA user_version = {version}")
    {then}
'''


def schema_of(connection):
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
    return [(*row[:3], " ".join((row[3] or "").split())) for row in rows.fetchall()]


def pragma(path, name):
    connection = sqlite3.connect(path)
    ((value,),) = connection.execute(f"PRAGMA {name}").fetchall()
    connection.close()
    return value


def migrate(path, migrations):
    engine = sqlalchemy.create_engine(
        f"sqlite:///{path}", isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool
    )
    with engine.connect() as connection:
        log_schema.migrate(connection, migrations)


@pytest.fixture
def with_second(tmp_path):
    """The revisions, and one more."""

    def make(version=2, then="pass"):
        migrations = tmp_path / "100% ours" / "migrations"
        shutil.copytree(log_schema.migrations_dir(), migrations, ignore=shutil.ignore_patterns("__pycache__"))
        (migrations / "versions" / "0002_later.py").write_text(SECOND.format(version=version, then=then))
        return migrations

    return make


def test_alembic_and_the_direct_way_make_the_same_schema(tmp_path):
    path = tmp_path / "alembic.db"
    migrate(path, log_schema.migrations_dir())
    by_alembic = sqlite3.connect(path)
    at_once = sqlite3.connect(":memory:", isolation_level=None)
    log_schema.create_schema(at_once)
    assert schema_of(by_alembic) == schema_of(at_once)
    for query in ("PRAGMA user_version", "PRAGMA application_id", "SELECT * FROM alembic_version"):
        assert by_alembic.execute(query).fetchall() == at_once.execute(query).fetchall()
    by_alembic.close()
    at_once.close()


def test_the_newest_revision_is_the_schema_version():
    versions = sorted((log_schema.migrations_dir() / "versions").glob("[0-9]*.py"))
    assert [one.name[:4] for one in versions] == [f"{n:04d}" for n in range(1, SCHEMA_VERSION + 1)]


def test_revisions_stand_alone():
    """A revision is frozen: if it took text from the package, changing that would rewrite history."""
    for file in (log_schema.migrations_dir() / "versions").glob("[0-9]*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("vpccni")], file.name


@pytest.fixture
async def older(tmp_path):
    path = tmp_path / "state" / "events.db"
    log = SqliteLog(path, volatile_ok=True)
    await log.open()
    await log.append(records(1, 30))
    await log.write_snapshot(Seq(20), records(1, 20))
    await log.close()
    return path


async def test_an_older_log_is_brought_up_and_keeps_every_event(older, with_second):
    log = SqliteLog(older, volatile_ok=True, schema=2, migrations=with_second())
    start = await log.open()
    assert (start.snapshot, start.tail) == (tuple(records(1, 20)), tuple(records(21, 30)))
    await log.append(records(31, 32))
    await log.close()
    assert pragma(older, "user_version") == 2
    assert (await log.open()).head == 32
    await log.close()
    with pytest.raises(PermanentError) as refused:
        await SqliteLog(older, volatile_ok=True).open()
    assert refused.value.reason is Reason.LOG_NEWER


async def test_a_migration_that_fails_changes_nothing(older, with_second):
    broken = SqliteLog(older, volatile_ok=True, schema=2, migrations=with_second(then="raise KeyError('no')"))
    with pytest.raises(KeyError):
        await broken.open()
    assert pragma(older, "user_version") == 1
    log = SqliteLog(older, volatile_ok=True)
    assert (await log.open()).head == 30
    assert await log._sql("SELECT name FROM sqlite_master WHERE name = 'later'") == []
    await log.close()


async def test_migrations_that_do_not_lead_to_our_schema_are_our_bug(older, with_second):
    with pytest.raises(InvariantBrokenError):
        await SqliteLog(older, volatile_ok=True, schema=3, migrations=with_second()).open()


def test_no_log_of_our_schema_imports_alembic(tmp_path):
    script = (
        "import asyncio, sys; from pathlib import Path; from vpccni.adapters.log_sqlite import SqliteLog\n"
        "async def main():\n"
        "    log = SqliteLog(Path(sys.argv[1]), volatile_ok=True)\n"
        "    for _ in range(2): await log.open(); await log.close()\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('alembic', 'mako')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "e.db")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "[]"


# --- what is shipped --------------------------------------------------------------------------------

INSTALLED = """
import sqlite3, sys
import sqlalchemy
from pathlib import Path
from vpccni.adapters import log_schema
assert Path(log_schema.__file__).is_relative_to(sys.argv[1]), log_schema.__file__
found = log_schema.migrations_dir()
engine = sqlalchemy.create_engine(f"sqlite:///{sys.argv[2]}", isolation_level="AUTOCOMMIT")
with engine.connect() as connection:
    log_schema.migrate(connection, found)
print(found.relative_to(sys.argv[1]))
"""


def run_installed(site, database):
    """Migrate with only the installed package in sight, from a directory that is no checkout."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", INSTALLED, str(site), str(database)],
        capture_output=True,
        text=True,
        check=False,
        cwd=site,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert pragma(database, "user_version") == SCHEMA_VERSION
    return done.stdout.strip()


def test_the_installed_layout_finds_and_runs_its_migrations(tmp_path):
    """What the wheel holds, laid out by hand as pyproject.toml says, so that no build backend is needed."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["vpccni"]
    site = tmp_path / "site"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vpccni", site / "vpccni", ignore=ignore)
    for source, target in wheel["force-include"].items():
        shutil.copytree(ROOT / source, site / target, ignore=ignore)
    assert run_installed(site, tmp_path / "e.db") == "vpccni/_migrations"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")
def test_a_built_wheel_finds_and_runs_its_migrations(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    shutil.unpack_archive(wheel, site, "zip")
    assert run_installed(site, tmp_path / "e.db") == "vpccni/_migrations"


def test_migrations_that_are_not_shipped_are_missed_loudly(tmp_path, monkeypatch):
    monkeypatch.setattr(log_schema, "__file__", str(tmp_path / "vpccni" / "adapters" / "log_schema.py"))
    with pytest.raises(InvariantBrokenError):
        log_schema.migrations_dir()
