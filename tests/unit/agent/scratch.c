#include "agent/scratch.h"

char agent_scratch[AGENT_SCRATCH_SIZE];
