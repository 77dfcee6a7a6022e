/* Typed calls to an agent that is played by our own server on the same loop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "agentclient/agentclient.h"
#include "base/cleanup.h"
#include "ttrpc/ttrpc_uv.h"

struct fixture {
	uv_loop_t loop;
	struct ttrpc_server *server;
	struct ttrpc_uv_conn *conn;
	struct agent_client *client;
};

static struct ttrpc_call *kept;

static void h_create(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	Grpc__CreateContainerRequest *req =
		ttrpc_call_unpack(call, &grpc__create_container_request__descriptor, payload, len);

	(void)ctx;
	assert_non_null(req);
	assert_int_equal(req->stdin_port, 70000);
	assert_string_equal(req->oci->process->args[0], "true");
	assert_true(ttrpc_call_deadline(call) != 0);
	if (strcmp(req->container_id, "taken") == 0)
		ttrpc_call_fail(call, TTRPC_ALREADY_EXISTS, "container 'taken' exists already");
	else
		ttrpc_reply_empty(call);
	grpc__create_container_request__free_unpacked(req, NULL);
}

static void h_wait(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)payload;
	(void)len;
	assert_int_equal(ttrpc_call_deadline(call), 0);
	kept = call;
}

static void h_keep(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)payload;
	(void)len;
	kept = call;
}

static void h_garbage(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	(void)ctx;
	(void)payload;
	(void)len;
	ttrpc_call_reply(call, "\xff", 1);
}

static void h_check(void *ctx, struct ttrpc_call *call, const uint8_t *payload, size_t len)
{
	Grpc__HealthCheckResponse resp = GRPC__HEALTH_CHECK_RESPONSE__INIT;

	(void)ctx;
	(void)payload;
	(void)len;
	resp.status = GRPC__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
	ttrpc_reply_msg(call, &resp.base);
}

static const struct ttrpc_method agent[] = {
	{ "CreateContainer", h_create, 0 },
	{ "WaitProcess", h_wait, 0 },
	{ "StatsContainer", h_garbage, 0 },
	{ "PauseContainer", h_keep, 0 },
};
static const struct ttrpc_method health[] = { { "Check", h_check, 0 } };

static unsigned done;
static int last;
static char text[512];
static int32_t status;

static void remember(const struct error *err)
{
	done++;
	last = err ? err->code : 0;
	(void)snprintf(text, sizeof(text), "%s", err ? err->msg : "");
}

static void on_empty(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	(void)arg;
	assert_true(!err == !!answer);
	remember(err);
}

static void on_wait(void *arg, const struct error *err, const Grpc__WaitProcessResponse *answer)
{
	(void)arg;
	status = answer ? answer->status : -1;
	remember(err);
}

static void on_stats(void *arg, const struct error *err, const Grpc__StatsContainerResponse *answer)
{
	(void)arg;
	assert_null(answer);
	remember(err);
}

static void on_check(void *arg, const struct error *err, const Grpc__HealthCheckResponse *answer)
{
	(void)arg;
	status = answer ? (int32_t)answer->status : -1;
	remember(err);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int sv[2];

	assert_int_equal(uv_loop_init(&f->loop), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(ttrpc_server_new(&f->server), 0);
	assert_int_equal(ttrpc_server_register(f->server, "grpc.AgentService", agent,
					       ARRAY_LEN(agent), NULL), 0);
	assert_int_equal(ttrpc_server_register(f->server, "grpc.Health", health,
					       ARRAY_LEN(health), NULL), 0);
	assert_int_equal(ttrpc_server_serve(f->server, &f->loop, sv[0], NULL, NULL, &f->conn), 0);
	assert_int_equal(agent_client_new(&f->loop, sv[1], &f->client), 0);
	done = 0;
	kept = NULL;
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	agent_client_close(f->client);
	ttrpc_server_free(f->server);
	if (kept)
		ttrpc_reply_empty(kept);
	(void)uv_run(&f->loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&f->loop), 0);
	free(f);
	return 0;
}

static void run_until(struct fixture *f, unsigned n)
{
	while (done < n && uv_run(&f->loop, UV_RUN_ONCE))
		;
	assert_int_equal(done, n);
}

static void create(struct fixture *f, const char *id)
{
	char *args[] = { (char *)"true" };
	Grpc__Process process = GRPC__PROCESS__INIT;
	Grpc__Spec spec = GRPC__SPEC__INIT;
	Grpc__CreateContainerRequest req = GRPC__CREATE_CONTAINER_REQUEST__INIT;

	process.args = args;
	process.n_args = 1;
	spec.process = &process;
	req.container_id = (char *)id;
	req.oci = &spec;
	req.stdin_port = 70000;
	assert_int_equal(agent_create_container(f->client, &req, on_empty, NULL), 0);
}

static void answers_and_errors(void **state)
{
	Grpc__CheckRequest check = GRPC__CHECK_REQUEST__INIT;
	Grpc__StatsContainerRequest stats = GRPC__STATS_CONTAINER_REQUEST__INIT;
	Grpc__DestroySandboxRequest destroy = GRPC__DESTROY_SANDBOX_REQUEST__INIT;
	struct fixture *f = *state;

	assert_int_equal(agent_check(f->client, &check, on_check, NULL), 0);
	run_until(f, 1);
	assert_int_equal(status, 1);
	create(f, "c1");
	run_until(f, 2);
	assert_int_equal(last, 0);
	create(f, "taken");
	run_until(f, 3);
	assert_int_equal(last, -EEXIST);
	assert_string_equal(text, "container 'taken' exists already");
	assert_int_equal(agent_stats_container(f->client, &stats, on_stats, NULL), 0);
	run_until(f, 4);
	assert_int_equal(last, -EPROTO);
	assert_non_null(strstr(text, "guest agent: StatsContainer: "));
	assert_int_equal(agent_destroy_sandbox(f->client, &destroy, on_empty, NULL), 0);
	run_until(f, 5);
	assert_int_equal(last, -ENOSYS);
	/* Nobody asks. */
	assert_int_equal(agent_check(f->client, &check, NULL, NULL), 0);
	assert_int_equal(agent_check(f->client, &check, on_check, NULL), 0);
	run_until(f, 6);
}

static void wait_waits(void **state)
{
	Grpc__WaitProcessRequest req = GRPC__WAIT_PROCESS_REQUEST__INIT;
	Grpc__WaitProcessResponse resp = GRPC__WAIT_PROCESS_RESPONSE__INIT;
	struct fixture *f = *state;

	agent_client_set_timeout(f->client, 1000000);
	assert_int_equal(agent_wait_process(f->client, &req, on_wait, NULL), 0);
	while (!kept)
		(void)uv_run(&f->loop, UV_RUN_ONCE);
	resp.status = 42;
	ttrpc_reply_msg(take_ptr(&kept), &resp.base);
	run_until(f, 1);
	assert_int_equal(status, 42);
}

static void others_have_a_limit(void **state)
{
	Grpc__PauseContainerRequest req = GRPC__PAUSE_CONTAINER_REQUEST__INIT;
	struct fixture *f = *state;

	agent_client_set_timeout(f->client, 20000000);
	assert_int_equal(agent_pause_container(f->client, &req, on_empty, NULL), 0);
	run_until(f, 1);
	assert_int_equal(last, -ETIMEDOUT);
	assert_non_null(strstr(text, "guest agent: PauseContainer: "));
}

static unsigned closed;

static void on_closed(void *arg, int err)
{
	struct fixture *f = arg;

	/* After the calls' own callbacks. */
	assert_int_equal(done, 1);
	assert_true(err < 0);
	closed++;
	agent_client_close(take_ptr(&f->client));
}

static void agent_dies(void **state)
{
	Grpc__WaitProcessRequest req = GRPC__WAIT_PROCESS_REQUEST__INIT;
	struct fixture *f = *state;

	closed = 0;
	agent_client_on_closed(f->client, on_closed, f);
	assert_int_equal(agent_wait_process(f->client, &req, on_wait, NULL), 0);
	while (!kept)
		(void)uv_run(&f->loop, UV_RUN_ONCE);
	ttrpc_uv_conn_close(f->conn);
	run_until(f, 1);
	assert_int_equal(last, -ENOTCONN);
	assert_int_equal(closed, 1);
}

static void close_ends_calls(void **state)
{
	Grpc__WaitProcessRequest req = GRPC__WAIT_PROCESS_REQUEST__INIT;
	struct fixture *f = *state;

	assert_int_equal(agent_wait_process(f->client, &req, on_wait, NULL), 0);
	agent_client_close(take_ptr(&f->client));
	assert_int_equal(done, 1);
	assert_int_equal(last, -ENOTCONN);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(answers_and_errors), T(wait_waits),	    T(others_have_a_limit),
		T(agent_dies),	       T(close_ends_calls),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
