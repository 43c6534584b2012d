"""The working registry: what nodes load. One line a service."""

from __future__ import annotations

from freehold.services.compute.provider import ComputeProvider
from freehold.services.seam import ProviderFactory
from freehold.services.sensing.provider import SensingProvider
from freehold.services.storage.provider import StorageProvider

PROVIDERS: dict[str, ProviderFactory] = {
    ComputeProvider.name: ComputeProvider,
    SensingProvider.name: SensingProvider,
    StorageProvider.name: StorageProvider,
}
