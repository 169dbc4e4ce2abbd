"""The `webhook` of a request: may it be asked for, and how it is shown. Never here: sending it (autoscaler/webhooks)."""

from collections.abc import Mapping
from typing import Any

from dispatch.errors import PenstockError
from dispatch.records import RequestRecord
from dispatch.settings_scale import WebhookSettings
from dispatch.webhooks import EVENTS, Webhook, check_url, events_of, masked
from gateway.fields import NativeFields, WebhookFields


def asked_webhook(fields: NativeFields, settings: WebhookSettings) -> tuple[str, str]:
    """The URL and the endings as they are stored; ("", ""): none. Raises PenstockError for one that nobody would deliver."""
    asked = fields.webhook
    if asked is None:
        return "", ""
    if settings.secret is None:
        raise PenstockError(
            "unsupported",
            "webhook: this Penstock signs none, for it has no webhook.secret.",
            hint="Leave it out and ask GET /v1/requests/{id}?wait=25, or let the operator set PENSTOCK_WEBHOOK__SECRET.",
            param="webhook",
        )
    given = asked if isinstance(asked, WebhookFields) else WebhookFields(url=asked)
    return check_url(given.url, allow_private=settings.allow_private), events_of(given.events or EVENTS)


def refuse_webhook(body: Mapping[str, Any]) -> None:
    """On routes whose caller has the answer on its own connection, and no id to be told of. Raises PenstockError."""
    if body.get("webhook") is not None:
        raise PenstockError(
            "unsupported",
            "webhook: this route answers on the connection it was asked on.",
            hint="Send the request to POST /v1/requests, which queues it and tells the webhook.",
            param="webhook",
        )


def webhook_document(record: RequestRecord, webhook: Webhook | None) -> dict[str, Any] | None:
    """As GET /v1/requests/{id} shows it. `state` is null while the request goes on, and for an ending that was not asked for."""
    if not record.webhook:
        return None
    return {
        "url": masked(record.webhook),
        "events": record.webhook_events.split() or list(EVENTS),
        "state": webhook.state if webhook else None,
        "tried": webhook.tried if webhook else 0,
        "tries": [
            {"at_ms": each.at_ms, "took_ms": each.took_ms, "status": each.status or None, "error": each.error or None}
            for each in (webhook.tries if webhook else ())
        ],
    }
