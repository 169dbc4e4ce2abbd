"""One file per group of verbs; each adds its own. A new verb is one function in a file and one row here."""

from penstock.commands import agent, chat, check, dead, requests, scale, simulate, start, submit, top, watch

COMMANDS = (
    start.add_up,
    start.add_gateway,
    start.add_worker,
    start.add_autoscaler,
    agent.add_agent,
    chat.add_chat,
    submit.add_submit,
    requests.add_request,
    requests.add_requests,
    dead.add_dead,
    top.add_top,
    watch.add_ps,
    watch.add_queues,
    scale.add_scale,
    simulate.add_simulate,
    check.add_doctor,
    check.add_config,
)
