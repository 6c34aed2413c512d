"""The fixtures of tests/models that generation needs, too."""

from tests.models.conftest import fake_flash as fake_flash
