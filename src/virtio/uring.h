/*
 * A small io_uring, for the one thread that uses it: registered files only, and only the operations
 * of disks, which the kernel is told before the ring is used. Private to virtio.
 */
#pragma once

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct uring {
	int fd; /* -1: not set up. Readable when completions wait. */
	unsigned entries;
	unsigned n_files;
	void *sq_map, *cq_map;
	size_t sq_len, cq_len, sqes_len;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	uint32_t *sq_head, *sq_tail, *cq_head, *cq_tail;
	uint32_t sq_mask, cq_mask;
	uint32_t tail;    /* ours, published by uring_submit() */
	uint32_t unsent;
};

/* -errno if the kernel or its policy has no io_uring for us. @entries: a power of two. */
int uring_init(struct uring *ring, unsigned entries, unsigned n_files);
void uring_fini(struct uring *ring);

/* Puts @fd (-1: nothing) at @index of the table of files. */
int uring_set_file(struct uring *ring, unsigned index, int fd);
/* A cleared entry to fill in, NULL if the queue is full: submit first. */
struct io_uring_sqe *uring_entry(struct uring *ring);
/* Hands over what was filled in and waits for @wait completions. */
int uring_submit(struct uring *ring, unsigned wait);
/* The next completion, if there is one. */
bool uring_pop(struct uring *ring, uint64_t *ret_data, int32_t *ret_result);
