"""An application over the fake member."""

import pytest

from san_target.admin.app import create_app
from tests.unit.admin.client import AppClient
from tests.unit.admin.fake_service import FakeService


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> AppClient:
    return AppClient(create_app(service, None))
