/*
 * Device access rules as a BPF program on the cgroup. Rules count from the last to the first, the
 * first that matches decides; no match is a refusal. Behind the spec's rules stand the devices that
 * every container has.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/container/internal.h"

#define RULES_MAX 1024
#define RULE_INSNS 8
#define ALL_ACCESS (BPF_DEVCG_ACC_MKNOD | BPF_DEVCG_ACC_READ | BPF_DEVCG_ACC_WRITE)

struct dev_rule {
	bool allow;
	int type;       /* BPF_DEVCG_DEV_*, 0: any */
	unsigned access;
	int64_t major, minor;   /* -1: any */
};

static const struct dev_rule default_rules[] = {
	{ true, BPF_DEVCG_DEV_CHAR, BPF_DEVCG_ACC_MKNOD, -1, -1 },
	{ true, BPF_DEVCG_DEV_BLOCK, BPF_DEVCG_ACC_MKNOD, -1, -1 },
	{ true, BPF_DEVCG_DEV_CHAR, ALL_ACCESS, 1, 3 },
	{ true, BPF_DEVCG_DEV_CHAR, ALL_ACCESS, 1, 5 },
	{ true, BPF_DEVCG_DEV_CHAR, ALL_ACCESS, 1, 7 },
	{ true, BPF_DEVCG_DEV_CHAR, ALL_ACCESS, 1, 8 },
	{ true, BPF_DEVCG_DEV_CHAR, ALL_ACCESS, 1, 9 },
	{ true, BPF_DEVCG_DEV_CHAR, ALL_ACCESS, 5, 0 },
	{ true, BPF_DEVCG_DEV_CHAR, ALL_ACCESS, 5, 1 },
	{ true, BPF_DEVCG_DEV_CHAR, ALL_ACCESS, 5, 2 },
	{ true, BPF_DEVCG_DEV_CHAR, ALL_ACCESS, 136, -1 },
	/* /dev/net/tun, for who makes its node: what it can do is up to CAP_NET_ADMIN. */
	{ true, BPF_DEVCG_DEV_CHAR, ALL_ACCESS, 10, 200 },
};

static struct bpf_insn insn(uint8_t code, uint8_t dst, uint8_t src, int16_t off, int32_t imm)
{
	return (struct bpf_insn){ .code = code, .dst_reg = dst, .src_reg = src, .off = off,
				  .imm = imm };
}

/* r2: type, r3: access wanted, r4: major, r5: minor. */
static size_t rule_emit(const struct dev_rule *d, struct bpf_insn *out)
{
	struct bpf_insn body[RULE_INSNS];
	bool is_jump[RULE_INSNS] = { false };
	size_t n = 0;

	if (d->type) {
		is_jump[n] = true;
		body[n++] = insn(BPF_JMP | BPF_JNE | BPF_K, 2, 0, 0, d->type);
	}
	if (d->access != ALL_ACCESS) {
		/* Allowed only if all that is wanted is listed, refused if any of it is. */
		body[n++] = insn(BPF_ALU | BPF_MOV | BPF_X, 6, 3, 0, 0);
		body[n++] = insn(BPF_ALU | BPF_AND | BPF_K, 6, 0, 0,
				 (int32_t)(d->allow ? ALL_ACCESS & ~d->access : d->access));
		is_jump[n] = true;
		body[n++] = insn(BPF_JMP | (d->allow ? BPF_JNE : BPF_JEQ) | BPF_K, 6, 0, 0, 0);
	}
	if (d->major >= 0) {
		is_jump[n] = true;
		body[n++] = insn(BPF_JMP | BPF_JNE | BPF_K, 4, 0, 0, (int32_t)d->major);
	}
	if (d->minor >= 0) {
		is_jump[n] = true;
		body[n++] = insn(BPF_JMP | BPF_JNE | BPF_K, 5, 0, 0, (int32_t)d->minor);
	}
	body[n++] = insn(BPF_ALU | BPF_MOV | BPF_K, 0, 0, 0, d->allow);
	body[n++] = insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	for (size_t i = 0; i < n; i++) {
		if (is_jump[i])
			body[i].off = (int16_t)(n - i - 1);
		out[i] = body[i];
	}
	return n;
}

static int rule_parse(const Grpc__LinuxDeviceCgroup *d, size_t index, struct dev_rule *ret,
		      struct error *err)
{
	*ret = (struct dev_rule){ .allow = d->allow, .major = d->major, .minor = d->minor };
	if (ctr_empty(d->type) || strcmp(d->type, "a") == 0)
		ret->type = 0;
	else if (strcmp(d->type, "c") == 0)
		ret->type = BPF_DEVCG_DEV_CHAR;
	else if (strcmp(d->type, "b") == 0)
		ret->type = BPF_DEVCG_DEV_BLOCK;
	else
		return error_set(err, -EINVAL, "devices[%zu].type: unknown type \"%s\"", index,
				 d->type);
	for (const char *s = ctr_empty(d->access) ? "rwm" : d->access; *s; s++) {
		if (*s == 'r')
			ret->access |= BPF_DEVCG_ACC_READ;
		else if (*s == 'w')
			ret->access |= BPF_DEVCG_ACC_WRITE;
		else if (*s == 'm')
			ret->access |= BPF_DEVCG_ACC_MKNOD;
		else
			return error_set(err, -EINVAL, "devices[%zu].access: \"%s\"", index,
					 d->access);
	}
	/* Any device at all: numbers mean nothing then, and 0:0 stands for "not given". */
	if (ret->type == 0 && ret->major <= 0 && ret->minor <= 0)
		ret->major = ret->minor = -1;
	if (ret->major > INT32_MAX || ret->minor > INT32_MAX)
		return error_set(err, -EINVAL, "devices[%zu]: number out of range", index);
	return 0;
}

static int devices_program(Grpc__LinuxDeviceCgroup *const *rules, size_t n, struct bpf_insn *prog,
			   size_t *ret_len, struct error *err)
{
	size_t len = 0;

	prog[len++] = insn(BPF_LDX | BPF_MEM | BPF_W, 2, 1, 0, 0);
	prog[len++] = insn(BPF_ALU | BPF_MOV | BPF_X, 3, 2, 0, 0);
	prog[len++] = insn(BPF_ALU | BPF_RSH | BPF_K, 3, 0, 0, 16);
	prog[len++] = insn(BPF_ALU | BPF_AND | BPF_K, 2, 0, 0, 0xffff);
	prog[len++] = insn(BPF_LDX | BPF_MEM | BPF_W, 4, 1, 4, 0);
	prog[len++] = insn(BPF_LDX | BPF_MEM | BPF_W, 5, 1, 8, 0);

	for (size_t i = n; i > 0; i--) {
		struct dev_rule d;
		int r = rule_parse(rules[i - 1], i - 1, &d, err);

		if (r < 0)
			return r;
		/* The usual first rule, "nothing at all", hides those before it, not the default devices. */
		if (!d.allow && d.type == 0 && d.major < 0 && d.minor < 0 &&
		    d.access == ALL_ACCESS)
			break;
		len += rule_emit(&d, prog + len);
		/* It decides about everything; the verifier refuses code that is never reached. */
		if (d.type == 0 && d.major < 0 && d.minor < 0 && d.access == ALL_ACCESS) {
			*ret_len = len;
			return 0;
		}
	}
	for (size_t i = 0; i < ARRAY_LEN(default_rules); i++)
		len += rule_emit(&default_rules[i], prog + len);
	prog[len++] = insn(BPF_ALU | BPF_MOV | BPF_K, 0, 0, 0, 0);
	prog[len++] = insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	*ret_len = len;
	return 0;
}

int ctr_devices_bpf(struct container *c, Grpc__LinuxDeviceCgroup *const *rules, size_t n,
		    struct error *err)
{
	auto_free struct bpf_insn *prog = NULL;
	auto_close int fd = -1;
	union bpf_attr a;
	size_t len;
	int r;

	if (n > RULES_MAX)
		return error_set(err, -E2BIG, "devices: more than %d rules", RULES_MAX);
	prog = calloc((n + ARRAY_LEN(default_rules) + 1) * RULE_INSNS + 8, sizeof(*prog));
	if (!prog)
		return error_set(err, -ENOMEM, "devices: out of memory");
	r = devices_program(rules, n, prog, &len, err);
	if (r < 0)
		return r;

	memset(&a, 0, sizeof(a));
	a.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
	a.insns = (uint64_t)(uintptr_t)prog;
	a.insn_cnt = (uint32_t)len;
	a.license = (uint64_t)(uintptr_t)"Apache-2.0";
	fd = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &a, sizeof(a));
	if (fd < 0)
		return error_errno(err, -errno, "devices: load the BPF program");

	memset(&a, 0, sizeof(a));
	a.target_fd = (uint32_t)c->cgroup_fd;
	a.attach_bpf_fd = (uint32_t)fd;
	a.attach_type = BPF_CGROUP_DEVICE;
	a.attach_flags = BPF_F_ALLOW_MULTI;
	if (c->devices_fd >= 0) {
		a.attach_flags |= BPF_F_REPLACE;
		a.replace_bpf_fd = (uint32_t)c->devices_fd;
	}
	if (syscall(SYS_bpf, BPF_PROG_ATTACH, &a, sizeof(a)) < 0)
		return error_errno(err, -errno, "devices: attach the BPF program");
	if (c->devices_fd >= 0)
		(void)close(c->devices_fd);
	c->devices_fd = take_fd(&fd);
	return 0;
}
