/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by task.c and task_process.c: handlers of the Task service. */
#pragma once

#include "shim/reply.h"

void task_create(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len);
void task_exec(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len);
void task_start(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len);
void task_delete(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len);
