"""What is wrong with a scenario.

HeadraceError
└── InvalidScenario           a part of it contradicts another, or names what is not there
"""

from __future__ import annotations

from schemas.errors import HeadraceError


class InvalidScenario(HeadraceError):
    """The scenario cannot be run."""

    code = "invalid_scenario"
