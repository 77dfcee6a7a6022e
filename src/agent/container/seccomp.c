/*
 * linux.seccomp: compiled by libseccomp in a short lived process (it is hungry), kept in a memfd as
 * a header and the BPF program, loaded by init and by every exec.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/container/internal.h"

struct seccomp_header {
	uint32_t magic;
	uint32_t flags;
};

#define SECCOMP_MAGIC 0x43414953u
#define SECCOMP_INSNS_MAX 32768

static const struct {
	const char *name;
	uint32_t value;
} arch_names[] = {
	{ "SCMP_ARCH_X86", SCMP_ARCH_X86 }, { "SCMP_ARCH_X86_64", SCMP_ARCH_X86_64 },
	{ "SCMP_ARCH_X32", SCMP_ARCH_X32 }, { "SCMP_ARCH_ARM", SCMP_ARCH_ARM },
	{ "SCMP_ARCH_AARCH64", SCMP_ARCH_AARCH64 }, { "SCMP_ARCH_MIPS", SCMP_ARCH_MIPS },
	{ "SCMP_ARCH_MIPS64", SCMP_ARCH_MIPS64 }, { "SCMP_ARCH_MIPS64N32", SCMP_ARCH_MIPS64N32 },
	{ "SCMP_ARCH_MIPSEL", SCMP_ARCH_MIPSEL }, { "SCMP_ARCH_MIPSEL64", SCMP_ARCH_MIPSEL64 },
	{ "SCMP_ARCH_MIPSEL64N32", SCMP_ARCH_MIPSEL64N32 }, { "SCMP_ARCH_PPC", SCMP_ARCH_PPC },
	{ "SCMP_ARCH_PPC64", SCMP_ARCH_PPC64 }, { "SCMP_ARCH_PPC64LE", SCMP_ARCH_PPC64LE },
	{ "SCMP_ARCH_S390", SCMP_ARCH_S390 }, { "SCMP_ARCH_S390X", SCMP_ARCH_S390X },
	{ "SCMP_ARCH_PARISC", SCMP_ARCH_PARISC }, { "SCMP_ARCH_PARISC64", SCMP_ARCH_PARISC64 },
	{ "SCMP_ARCH_RISCV64", SCMP_ARCH_RISCV64 },
}, op_names[] = {
	{ "SCMP_CMP_NE", SCMP_CMP_NE }, { "SCMP_CMP_LT", SCMP_CMP_LT },
	{ "SCMP_CMP_LE", SCMP_CMP_LE }, { "SCMP_CMP_EQ", SCMP_CMP_EQ },
	{ "SCMP_CMP_GE", SCMP_CMP_GE }, { "SCMP_CMP_GT", SCMP_CMP_GT },
	{ "SCMP_CMP_MASKED_EQ", SCMP_CMP_MASKED_EQ },
}, flag_names[] = {
	{ "SECCOMP_FILTER_FLAG_TSYNC", 0 },     /* one thread: nothing to synchronize */
	{ "SECCOMP_FILTER_FLAG_LOG", SECCOMP_FILTER_FLAG_LOG },
	{ "SECCOMP_FILTER_FLAG_SPEC_ALLOW", SECCOMP_FILTER_FLAG_SPEC_ALLOW },
	{ "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 0 },        /* for notifications only */
};

static int seccomp_action(const char *name, bool has_errno, uint32_t code, uint32_t *ret)
{
	uint32_t e = has_errno ? code : EPERM;

	if (e > 0xffff)
		return -ERANGE;
	if (strcmp(name, "SCMP_ACT_ALLOW") == 0)
		*ret = SCMP_ACT_ALLOW;
	else if (strcmp(name, "SCMP_ACT_ERRNO") == 0)
		*ret = SCMP_ACT_ERRNO(e);
	else if (strcmp(name, "SCMP_ACT_TRACE") == 0)
		*ret = SCMP_ACT_TRACE(e);
	else if (strcmp(name, "SCMP_ACT_KILL") == 0 || strcmp(name, "SCMP_ACT_KILL_THREAD") == 0)
		*ret = SCMP_ACT_KILL_THREAD;
	else if (strcmp(name, "SCMP_ACT_KILL_PROCESS") == 0)
		*ret = SCMP_ACT_KILL_PROCESS;
	else if (strcmp(name, "SCMP_ACT_TRAP") == 0)
		*ret = SCMP_ACT_TRAP;
	else if (strcmp(name, "SCMP_ACT_LOG") == 0)
		*ret = SCMP_ACT_LOG;
	else if (strcmp(name, "SCMP_ACT_NOTIFY") == 0)
		return -EOPNOTSUPP;
	else
		return -EINVAL;
	return 0;
}

static int seccomp_args(const Grpc__LinuxSyscall *s, size_t index, struct scmp_arg_cmp *cmp,
			struct error *err)
{
	for (size_t k = 0; k < s->n_args; k++) {
		const Grpc__LinuxSeccompArg *a = s->args[k];
		uint32_t op = 0;

		if (a->index > 5)
			return error_set(err, -EINVAL, "linux.seccomp.syscalls[%zu].args[%zu].index:"
					 " %llu", index, k, (unsigned long long)a->index);
		if (!CTR_LOOKUP(op_names, a->op, &op))
			return error_set(err, -EINVAL, "linux.seccomp.syscalls[%zu].args[%zu].op: "
					 "unknown operator \"%s\"", index, k, a->op);
		/* The mask is the first value, what it must give the second. */
		cmp[k] = (struct scmp_arg_cmp){ .arg = (unsigned)a->index,
						.op = (enum scmp_compare)op,
						.datum_a = a->value, .datum_b = a->valuetwo };
	}
	return 0;
}

static int seccomp_add(scmp_filter_ctx ctx, uint32_t action, int nr,
		       const struct scmp_arg_cmp *cmp, size_t n)
{
	bool repeated = false;
	int r = 0;

	/* Two conditions on one argument are alternatives: one rule for each. */
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < i; j++)
			repeated = repeated || cmp[i].arg == cmp[j].arg;
	if (!repeated)
		return seccomp_rule_add_array(ctx, action, nr, (unsigned)n, cmp);
	for (size_t i = 0; i < n && r == 0; i++)
		r = seccomp_rule_add_array(ctx, action, nr, 1, cmp + i);
	return r;
}

static int seccomp_rules(scmp_filter_ctx ctx, const Grpc__LinuxSeccomp *s, uint32_t def,
			 struct error *err)
{
	for (size_t i = 0; i < s->n_syscalls; i++) {
		const Grpc__LinuxSyscall *y = s->syscalls[i];
		struct scmp_arg_cmp cmp[6];
		uint32_t action = 0;
		int r;

		r = seccomp_action(y->action, y->errno_ret_case == GRPC__LINUX_SYSCALL__ERRNO_RET_ERRNORET,
				   y->errnoret, &action);
		if (r < 0)
			return error_set(err, r, "linux.seccomp.syscalls[%zu].action: \"%s\" is %s",
					 i, y->action, r == -EOPNOTSUPP ? "not supported" :
					 "not known");
		if (y->n_args > 6)
			return error_set(err, -EINVAL, "linux.seccomp.syscalls[%zu].args: more than "
					 "6", i);
		r = seccomp_args(y, i, cmp, err);
		if (r < 0)
			return r;
		if (action == def)
			continue;
		for (size_t k = 0; k < y->n_names; k++) {
			int nr = seccomp_syscall_resolve_name(y->names[k]);

			/* Profiles name calls that this libseccomp or architecture lacks. */
			if (nr == __NR_SCMP_ERROR)
				continue;
			r = seccomp_add(ctx, action, nr, cmp, y->n_args);
			if (r < 0 && r != -EEXIST)
				return error_errno(err, r, "linux.seccomp.syscalls[%zu]: %s", i,
						   y->names[k]);
		}
	}
	return 0;
}

int ctr_seccomp_compile(const Grpc__LinuxSeccomp *s, int memfd, struct error *err)
{
	struct seccomp_header h = { .magic = SECCOMP_MAGIC };
	scmp_filter_ctx ctx;
	uint32_t def = 0, v = 0;
	int r;

	if (!ctr_empty(s->listenerpath))
		return error_set(err, -EOPNOTSUPP, "linux.seccomp.listenerPath: not supported in a "
				 "virtual machine");
	r = seccomp_action(s->defaultaction,
			   s->default_errno_case == GRPC__LINUX_SECCOMP__DEFAULT_ERRNO_DEFAULT_ERRNO_RET,
			   s->defaulterrnoret, &def);
	if (r < 0)
		return error_set(err, r, "linux.seccomp.defaultAction: \"%s\" is %s",
				 s->defaultaction, r == -EOPNOTSUPP ? "not supported" : "not known");
	for (size_t i = 0; i < s->n_flags; i++) {
		if (!CTR_LOOKUP(flag_names, s->flags[i], &v))
			return error_set(err, -EINVAL, "linux.seccomp.flags[%zu]: unknown flag "
					 "\"%s\"", i, s->flags[i]);
		h.flags |= v;
	}
	if (write(memfd, &h, sizeof(h)) != (ssize_t)sizeof(h))
		return error_errno(err, -EIO, "linux.seccomp");

	ctx = seccomp_init(def);
	if (!ctx)
		return error_set(err, -ENOMEM, "linux.seccomp: out of memory");
	/* no_new_privs is the process's business, not the filter's. */
	r = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_NNP, 0);
	for (size_t i = 0; r == 0 && i < s->n_architectures; i++) {
		if (!CTR_LOOKUP(arch_names, s->architectures[i], &v)) {
			r = error_set(err, -EINVAL, "linux.seccomp.architectures[%zu]: unknown "
				      "architecture \"%s\"", i, s->architectures[i]);
			break;
		}
		r = seccomp_arch_add(ctx, v);
		if (r == -EEXIST)
			r = 0;
		if (r < 0)
			(void)error_errno(err, r, "linux.seccomp.architectures[%zu]", i);
	}
	if (r == 0)
		r = seccomp_rules(ctx, s, def, err);
	if (r == 0) {
		r = seccomp_export_bpf(ctx, memfd);
		if (r < 0)
			(void)error_errno(err, r, "linux.seccomp: compile");
	}
	seccomp_release(ctx);
	return r;
}

int ctr_seccomp_load(int memfd, struct error *err)
{
	struct seccomp_header h;
	auto_free struct sock_filter *insns = NULL;
	struct sock_fprog prog = { 0 };
	off_t size = lseek(memfd, 0, SEEK_END);
	size_t len;

	if (size < (off_t)sizeof(h) || fd_pread_full(memfd, &h, sizeof(h), 0) != sizeof(h) ||
	    h.magic != SECCOMP_MAGIC)
		return error_set(err, -EIO, "linux.seccomp: no filter");
	len = (size_t)size - sizeof(h);
	if (len == 0 || len % sizeof(*insns) || len / sizeof(*insns) > SECCOMP_INSNS_MAX)
		return error_set(err, -EIO, "linux.seccomp: bad filter");
	insns = malloc(len);
	if (!insns)
		return error_set(err, -ENOMEM, "linux.seccomp: out of memory");
	if (fd_pread_full(memfd, insns, len, sizeof(h)) != (ssize_t)len)
		return error_set(err, -EIO, "linux.seccomp: bad filter");
	prog.len = (unsigned short)(len / sizeof(*insns));
	prog.filter = insns;
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, h.flags, &prog) < 0)
		return error_errno(err, -errno, "linux.seccomp: load");
	return 0;
}
