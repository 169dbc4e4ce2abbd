#!lua flags=allow-oom
-- keep_reading: renew a gateway's reader lease.
-- use: later ground log
-- args: now gateway
touch_gateway(gateway, true)
return 1
