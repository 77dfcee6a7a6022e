/* What a machine of the built-in monitor can hold. */
#pragma once

#define MONITOR_MAX_VCPUS   64u
#define MONITOR_MAX_DEVICES 48u
/* Of those, the monitor's own: console, random numbers, balloon. */
#define MONITOR_OWN_DEVICES 3u
