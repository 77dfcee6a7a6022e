/*
 * One buffer for whoever needs room within a single function (netlink answers, stdio copies,
 * reading files of /proc), so that the pages touched are the same ones each time. Its content
 * doesn't survive a call to anything else of the agent.
 */
#pragma once

#define AGENT_SCRATCH_SIZE 32768

extern char agent_scratch[AGENT_SCRATCH_SIZE];
