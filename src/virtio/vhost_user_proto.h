/* The wire of vhost-user: numbers and layouts, native endian. Private to the transport and its tests. */
#pragma once

#include <stdint.h>

#define VHU_F_LOG_ALL           (UINT64_C(1) << 26)
#define VHU_F_PROTOCOL_FEATURES (UINT64_C(1) << 30)

enum vhu_protocol_feature {
	VHU_PF_MQ = 0,
	VHU_PF_LOG_SHMFD = 1,
	VHU_PF_REPLY_ACK = 3,
	VHU_PF_BACKEND_REQ = 5,
	VHU_PF_CONFIG = 9,
	VHU_PF_RESET_DEVICE = 13,
	VHU_PF_CONFIGURE_MEM_SLOTS = 15,
};

enum vhu_request {
	VHU_GET_FEATURES = 1,
	VHU_SET_FEATURES = 2,
	VHU_SET_OWNER = 3,
	VHU_RESET_OWNER = 4,
	VHU_SET_MEM_TABLE = 5,
	VHU_SET_LOG_BASE = 6,
	VHU_SET_LOG_FD = 7,
	VHU_SET_VRING_NUM = 8,
	VHU_SET_VRING_ADDR = 9,
	VHU_SET_VRING_BASE = 10,
	VHU_GET_VRING_BASE = 11,
	VHU_SET_VRING_KICK = 12,
	VHU_SET_VRING_CALL = 13,
	VHU_SET_VRING_ERR = 14,
	VHU_GET_PROTOCOL_FEATURES = 15,
	VHU_SET_PROTOCOL_FEATURES = 16,
	VHU_GET_QUEUE_NUM = 17,
	VHU_SET_VRING_ENABLE = 18,
	VHU_SET_BACKEND_REQ_FD = 21,
	VHU_GET_CONFIG = 24,
	VHU_SET_CONFIG = 25,
	VHU_RESET_DEVICE = 34,
	VHU_GET_MAX_MEM_SLOTS = 36,
	VHU_ADD_MEM_REG = 37,
	VHU_REM_MEM_REG = 38,
};

/* From us to the front-end, over the socket of SET_BACKEND_REQ_FD. */
#define VHU_BACKEND_CONFIG_CHANGE 2u

#define VHU_FLAG_VERSION      1u
#define VHU_FLAG_VERSION_MASK 3u
#define VHU_FLAG_REPLY        (1u << 2)
#define VHU_FLAG_NEED_REPLY   (1u << 3)

#define VHU_VRING_INDEX_MASK 0xffu
#define VHU_VRING_NO_FD      (1u << 8)

#define VHU_MAX_FDS        8
#define VHU_CONFIG_MAX     256
#define VHU_PAYLOAD_MAX    512

struct vhu_header {
	uint32_t request;
	uint32_t flags;
	uint32_t size;
};

struct vhu_region {
	uint64_t gpa;
	uint64_t size;
	uint64_t uva;
	uint64_t offset;
};

union vhu_payload {
	uint64_t u64;
	struct {
		uint32_t index;
		uint32_t num;
	} state;
	struct {
		uint32_t index;
		uint32_t flags;
		uint64_t desc;
		uint64_t used;
		uint64_t avail;
		uint64_t log;
	} addr;
	struct {
		uint32_t n;
		uint32_t padding;
		struct vhu_region regions[VHU_MAX_FDS];
	} mem;
	struct {
		uint64_t padding;
		struct vhu_region region;
	} mem_reg;
	struct {
		uint32_t offset;
		uint32_t size;
		uint32_t flags;
		uint8_t data[VHU_CONFIG_MAX];
	} config;
	uint8_t raw[VHU_PAYLOAD_MAX];
};

/* The wire begins at hdr; what stands before it keeps the payload aligned and hdr adjoining it. */
struct vhu_msg {
	uint32_t align;
	struct vhu_header hdr;
	union vhu_payload p;
};

#define VHU_CONFIG_HEAD 12u

_Static_assert(__builtin_offsetof(struct vhu_msg, p) ==
		       __builtin_offsetof(struct vhu_msg, hdr) + sizeof(struct vhu_header),
	       "header and payload are one piece");
