from __future__ import annotations

from examples.shop.orchestration.saga import fulfil
from examples.shop.orchestration.services import application

app = application(fulfil)
