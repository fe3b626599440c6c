"""Token buckets: what a tenant may send to an endpoint."""

from __future__ import annotations

from schemas.catalog import Quota

ANY_TENANT = "*"


class Quotas:
    """One bucket per endpoint and tenant, filled by time alone; the bounded number of tenants shares one account above the bound."""

    def __init__(self, tenants_max: int) -> None:
        self._tenants_max = tenants_max
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def take(self, endpoint: str, tenant: str, quotas: dict[str, Quota], now_ms: float, share: float = 1.0) -> bool:
        """True where the request is within quota; it then counts. `share`: this dispatcher's part, as each of N sees about 1/N of the requests."""
        quota = quotas.get(tenant) or quotas.get(ANY_TENANT)
        if quota is None:
            return True
        account = (endpoint, tenant)
        if account not in self._buckets and len(self._buckets) >= self._tenants_max:
            account = (endpoint, ANY_TENANT)
        tokens, filled_ms = self._buckets.get(account, (float(quota.burst), now_ms))
        # A clock that is set back fills nothing, and not the same time twice.
        now_ms = max(now_ms, filled_ms)
        tokens = min(float(quota.burst), tokens + (now_ms - filled_ms) * quota.rate_rps * share / 1000.0)
        admitted = tokens >= 1.0
        self._buckets[account] = (tokens - 1.0 if admitted else tokens, now_ms)
        return admitted
