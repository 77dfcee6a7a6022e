/*
 * Carries out the operations of raw block sources: over io_uring, or in worker threads where the
 * host has none for us. One for each block device, used in its thread only. Private to virtio.
 */
#pragma once

#include "virtio/blk.h"

/* Files open at a time, and operations under way; more wait. */
#define BLK_ENGINE_FILES 256u
#define BLK_ENGINE_DEPTH 64u

int blk_engine_new(bool no_uring, struct blk_engine **ret, struct error *err);
/* The thread that it was attached in has ended, and nothing is under way. Takes NULL. */
void blk_engine_free(struct blk_engine *e);
/* @batch_end runs after completions that came from the loop, so that they are announced together. */
int blk_engine_attach(struct blk_engine *e, struct evloop *loop, void (*batch_end)(void *ctx),
		      void *ctx);
bool blk_engine_attached(const struct blk_engine *e);

/* Makes @fd (borrowed until closed here) known: its index, or -errno. */
int blk_engine_open(struct blk_engine *e, int fd);
void blk_engine_close(struct blk_engine *e, int file);

/* @io->engine_file and @io->is_device say where to. Completes later. */
void blk_engine_submit(struct blk_engine *e, struct blk_io *io);
/* Starts what was submitted, and completes what is done already. */
void blk_engine_commit(struct blk_engine *e);
/* The same, and waits for a completion if something is under way. */
void blk_engine_wait(struct blk_engine *e);
