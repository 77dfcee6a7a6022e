/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loopback of a pod's namespace: who connects to 127.0.0.0/8 there means the pod, whose servers
 * listen on the loopback of the guest. A program of the kernel's socket lookup gives every such
 * connection, whatever its port, to one listening socket. It goes with the descriptor that holds it.
 */
#include <arpa/inet.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fd.h"
#include "net/net.h"
#include "net/ns.h"

#define BACKLOG 16
#define INSN(op, d, s, offset, value)                                                         \
	{ .code = (op), .dst_reg = (d), .src_reg = (s), .off = (offset), .imm = (value) }
#define MOV(d, s)	INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define MOV_IMM(d, v)	INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, v)
#define LOAD(d, field)                                                                        \
	INSN(BPF_LDX | BPF_MEM | BPF_W, d, BPF_REG_1, offsetof(struct bpf_sk_lookup, field), 0)
#define JUMP_NE(r, v, to) INSN(BPF_JMP | BPF_JNE | BPF_K, r, 0, to, v)
#define CALL(f)		INSN(BPF_JMP | BPF_CALL, 0, 0, 0, f)

static int bpf(int command, union bpf_attr *attr)
{
	long r = syscall(SYS_bpf, command, attr, sizeof(*attr));

	return r < 0 ? -errno : (int)r;
}

/* A map of one socket. */
static int make_map(int listener)
{
	union bpf_attr a = { .map_type = BPF_MAP_TYPE_SOCKMAP, .key_size = 4, .value_size = 8,
			     .max_entries = 1 };
	int map = bpf(BPF_MAP_CREATE, &a), r;
	uint64_t value = (uint64_t)listener;
	uint32_t key = 0;

	if (map < 0)
		return map;
	memset(&a, 0, sizeof(a));
	a.map_fd = (uint32_t)map;
	a.key = (uint64_t)(uintptr_t)&key;
	a.value = (uint64_t)(uintptr_t)&value;
	r = bpf(BPF_MAP_UPDATE_ELEM, &a);
	if (r < 0)
		(void)close(map);
	return r < 0 ? r : map;
}

/* if TCP and to 127.0.0.0/8: the map's socket */
static int make_program(int map)
{
	const struct bpf_insn program[] = {
		MOV(BPF_REG_6, BPF_REG_1),
		LOAD(BPF_REG_2, protocol),
		JUMP_NE(BPF_REG_2, IPPROTO_TCP, 17),
		LOAD(BPF_REG_2, local_ip4),
		INSN(BPF_ALU64 | BPF_AND | BPF_K, BPF_REG_2, 0, 0, (int)htonl(0xff000000)),
		JUMP_NE(BPF_REG_2, (int)htonl(0x7f000000), 14),
		INSN(BPF_ST | BPF_MEM | BPF_W, BPF_REG_10, 0, -4, 0),
		INSN(BPF_LD | BPF_DW | BPF_IMM, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, map),
		INSN(0, 0, 0, 0, 0),
		MOV(BPF_REG_2, BPF_REG_10),
		INSN(BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_2, 0, 0, -4),
		CALL(BPF_FUNC_map_lookup_elem),
		INSN(BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_0, 0, 7, 0),
		MOV(BPF_REG_7, BPF_REG_0),
		MOV(BPF_REG_1, BPF_REG_6),
		MOV(BPF_REG_2, BPF_REG_7),
		MOV_IMM(BPF_REG_3, 0),
		CALL(BPF_FUNC_sk_assign),
		MOV(BPF_REG_1, BPF_REG_7),
		CALL(BPF_FUNC_sk_release),
		MOV_IMM(BPF_REG_0, SK_PASS),
		INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
	};
	static const char license[] = "GPL";
	union bpf_attr a = { .prog_type = BPF_PROG_TYPE_SK_LOOKUP };

	a.expected_attach_type = BPF_SK_LOOKUP;
	a.insns = (uint64_t)(uintptr_t)program;
	a.insn_cnt = sizeof(program) / sizeof(*program);
	a.license = (uint64_t)(uintptr_t)license;
	return bpf(BPF_PROG_LOAD, &a);
}

static int listen_inside(int netns)
{
	const struct sockaddr_in any_port = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	auto_close int fd = -1;
	int back, r = ns_enter(netns, &back);

	if (r < 0)
		return r;
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || bind(fd, (const struct sockaddr *)&any_port, sizeof(any_port)) < 0 ||
	    listen(fd, BACKLOG) < 0)
		r = -errno;
	ns_leave(back);
	return r < 0 ? r : take_fd(&fd);
}

int net_loopback_open(const char *netns, int *ret_listener, int *ret_hold, struct error *err)
{
	auto_close int listener = -1, map = -1, program = -1, ns_fd = -1;
	union bpf_attr a = { 0 };
	struct ns ns;
	int r;

	r = ns_open(netns, &ns, err);
	if (r < 0)
		return r;
	ns_fd = ns.fd;
	r = listener = listen_inside(ns_fd);
	if (r < 0)
		return error_errno(err, r, "listen in '%s'", netns);
	r = map = make_map(listener);
	if (r >= 0)
		r = program = make_program(map);
	if (r >= 0) {
		a.link_create.prog_fd = (uint32_t)program;
		a.link_create.target_fd = (uint32_t)ns_fd;
		a.link_create.attach_type = BPF_SK_LOOKUP;
		r = bpf(BPF_LINK_CREATE, &a);
	}
	if (r < 0)
		return error_errno(err, r, "direct the loopback of '%s'", netns);
	*ret_hold = r;
	*ret_listener = take_fd(&listener);
	return 0;
}
