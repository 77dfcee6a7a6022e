#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "vmm/machine_priv.h"

#define TAIL_LINES 12
#define TAIL_MAX   2048

/* The last line of @text that isn't empty, without QEMU's own name before it. */
static const char *last_words(char *text)
{
	char *line;

	for (;;) {
		size_t len = strlen(text);

		while (len && (text[len - 1] == '\n' || text[len - 1] == '\r'))
			text[--len] = '\0';
		line = strrchr(text, '\n');
		return line ? line + 1 : text;
	}
}

static enum vmm_exit judge(const struct machine *m, const struct qemu_end *end, const char *panic)
{
	if (m->stopping)
		return VMM_EXIT_STOPPED;
	if (end->guest_ended && end->wait_status == 0)
		return panic || end->panicked ? VMM_EXIT_PANIC : VMM_EXIT_GUEST;
	return end->ran ? VMM_EXIT_CRASH : VMM_EXIT_START;
}

static char *describe(const struct machine *m, const struct qemu_end *end, enum vmm_exit reason,
		      const char *panic)
{
	auto_free char *tail = console_tail(&m->console, TAIL_LINES, TAIL_MAX);
	auto_free char *words = strdup(end->words);
	const char *said = words ? last_words(words) : "";
	char how[64];

	if (WIFSIGNALED(end->wait_status))
		(void)!str_format(how, sizeof(how), "was killed by signal %d",
				  WTERMSIG(end->wait_status));
	else
		(void)!str_format(how, sizeof(how), "ended with code %d",
				  WEXITSTATUS(end->wait_status));
	switch (reason) {
	case VMM_EXIT_GUEST:
		return strdup("the guest powered off");
	case VMM_EXIT_STOPPED:
		return strdup("stopped");
	case VMM_EXIT_PANIC:
		return str_printf("the guest's kernel panicked: %s",
				  panic ? panic : "its console does not tell why");
	case VMM_EXIT_START:
	case VMM_EXIT_CRASH:
	case VMM_EXIT_LOST:
	default:
		return str_printf("QEMU %s%s%s%s%s", how, *said ? ": " : "", said,
				  tail && *tail ? "; the guest's console:\n" : "",
				  tail ? tail : "");
	}
}

void machine_qemu_ended(void *ctx, const struct qemu_end *end)
{
	struct machine *m = ctx;
	auto_free char *panic = console_panic(&m->console);
	enum vmm_exit reason = judge(m, end, panic);
	auto_free char *text = describe(m, end, reason, panic);

	machine_stop_backends(m);
	qemu_free(take_ptr(&m->qemu));
	m->ops->ended(m->ctx, reason, text ? text : "out of memory");
}

static enum vmm_exit judge_builtin(const struct monitor_end *end, const char *panic)
{
	if (end->stopped)
		return VMM_EXIT_STOPPED;
	switch (end->why) {
	case VCPU_END_RESET:
		return panic && !end->panic_known ? VMM_EXIT_PANIC : VMM_EXIT_GUEST;
	case VCPU_END_PANIC:
	case VCPU_END_TRIPLE_FAULT:
		return VMM_EXIT_PANIC;
	case VCPU_END_FAILED:
	default:
		return VMM_EXIT_CRASH;
	}
}

static char *describe_builtin(const struct machine *m, const struct monitor_end *end,
			      const char *panic)
{
	auto_free char *tail = console_tail(&m->console, TAIL_LINES, TAIL_MAX);
	const char *title = tail && *tail ? "; the guest's console:\n" : "";

	if (end->stopped)
		return strdup("stopped");
	if (end->why == VCPU_END_RESET && (!panic || end->panic_known))
		return strdup("the guest powered off");
	if (panic)
		return str_printf("the guest's kernel panicked: %s", panic);
	if (end->why == VCPU_END_PANIC)
		return strdup("the guest's kernel panicked");
	return str_printf("%s%s%s%s",
			  end->why == VCPU_END_TRIPLE_FAULT ?
				  "the guest's processor gave up (triple fault): " :
				  "the virtual machine cannot go on: ",
			  end->text, title, tail ? tail : "");
}

void machine_builtin_ended(void *ctx, const struct monitor_end *end)
{
	struct machine *m = ctx;
	auto_free char *panic = console_panic(&m->console);
	enum vmm_exit reason = judge_builtin(end, panic);
	auto_free char *text = describe_builtin(m, end, panic);

	m->shelf = NULL;
	monitor_free(take_ptr(&m->monitor));
	m->ops->ended(m->ctx, reason, text ? text : "out of memory");
}
