#include "../test.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"

static char line[8192];

static const char *logged(int fd)
{
	ssize_t n = read(fd, line, sizeof(line) - 1);

	line[n > 0 ? n : 0] = '\0';
	return line;
}

static void lines(void **state)
{
	char big[5000];
	int p[2];

	assert_int_equal(pipe2(p, O_CLOEXEC | O_NONBLOCK), 0);
	log_init("shim", p[1], LOG_INFO);
	log_set_field("sandbox", "abc");
	log_write(LOG_INFO, "a b", "k", "v", "none", NULL, "q", "x\"y\n", NULL);
	assert_non_null(strstr(logged(p[0]), " level=info msg=\"a b\" source=shim sandbox=abc k=v "
					     "q=\"x\\\"y\\n\"\n"));
	assert_memory_equal(line, "time=2", 6);

	log_debug("not seen");
	assert_string_equal(logged(p[0]), "");

	/* A forged line stays inside its value; a long one is cut and still ends. */
	log_info("evil\nlevel=error msg=%s", "forged");
	assert_null(strchr(logged(p[0]), '\n')[1] ? line : NULL);
	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	log_write(LOG_ERROR, big, NULL);
	assert_int_equal(logged(p[0])[strlen(line) - 1], '\n');
	log_init(NULL, STDERR_FILENO, LOG_WARN);
	close(p[0]);
	close(p[1]);
}

static void levels(void **state)
{
	enum log_level l;

	assert_int_equal(log_level_parse("warn", &l), 0);
	assert_int_equal(l, LOG_WARN);
	assert_int_equal(log_level_parse("trace", &l), 0);
	assert_int_equal(l, LOG_TRACE);
	assert_int_equal(log_level_parse("loud", &l), -EINVAL);
}

static void token_bucket(void **state)
{
	struct log_ratelimit rl = { .burst = 3, .per_second = 1000 };
	int passed = 0;

	for (int i = 0; i < 3; i++)
		assert_true(log_ratelimit_ok(&rl));
	for (int i = 0; i < 100000; i++)
		passed += log_ratelimit_ok(&rl);
	assert_true(passed < 50000);
	usleep(20000);
	assert_true(log_ratelimit_ok(&rl));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lines),
		cmocka_unit_test(levels),
		cmocka_unit_test(token_bucket),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
