/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See mirror.h. Each change makes a new listing of the source; what differs from the listing that the
 * guest has is sent, one call after another, links last. In a listing links are read before
 * directories, so that whatever a link leads to is at least as new as the link; and a link is only
 * sent while it is still what was listed, so that what it leads to had not been removed before it was
 * read. When the source changes meanwhile, it is listed again: after the last call, or at once if a
 * file or link is not what it was.
 */
#include "sandbox/mirror.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agentclient/agentclient.h"
#include "base/base.h"
#include "base/loop.h"
#include "sandbox/watch.h"

#define MAX_ENTRIES 4096u
#define MAX_BYTES   (16u << 20)
#define MAX_DEPTH   8u
#define CHUNK       (512u << 10)
#define RETRY_MS    3000
#define EVENTS (IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_CLOSE_WRITE | IN_ATTRIB | \
		IN_ONLYDIR | IN_DONT_FOLLOW)

struct entry {
	char *path;   /* relative to the source, without a leading slash */
	char *target; /* of a link */
	struct stat st;
};

struct listing {
	struct entry *v;
	size_t n;
	uint64_t bytes;
};

struct mirror {
	uv_loop_t *loop;
	char *source, *name;
	int notify_fd;
	struct watch *watch;
	struct agent_client *agent;
	struct listing sent, next; /* next: being sent */
	size_t at;                 /* position in the plan: entries of next, then of sent */
	char *data;                /* file being sent */
	size_t data_len, data_off;
	struct loop_timer *retry;
	bool busy, changed, stale, dead, complete;
	unsigned refs;             /* the owner's, and that of a call under way */
	sandbox_done_fn done;
	void *arg;
};

/* --- listings --- */

static void listing_fini(struct listing *l)
{
	for (size_t i = 0; i < l->n; i++) {
		free(l->v[i].path);
		free(l->v[i].target);
	}
	free(l->v);
	*l = (struct listing){ 0 };
}

static int add(struct listing *l, const char *path, const struct stat *st, const char *target)
{
	struct entry *v, e = { .st = *st };

	if (l->n == MAX_ENTRIES ||
	    (S_ISREG(st->st_mode) && (uint64_t)st->st_size > MAX_BYTES - l->bytes))
		return -EFBIG;
	v = reallocarray(l->v, l->n + 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	l->v = v;
	e.path = strdup(path);
	e.target = target ? strdup(target) : NULL;
	if (!e.path || (target && !e.target)) {
		free(e.path);
		return -ENOMEM;
	}
	if (S_ISREG(st->st_mode))
		l->bytes += (uint64_t)st->st_size;
	l->v[l->n++] = e;
	return 0;
}

static int add_one(struct listing *l, int dirfd, const char *name, const char *path, bool links,
		   bool *ret_is_dir)
{
	char target[PATH_MAX];
	struct stat st;
	ssize_t n;

	*ret_is_dir = false;
	/* What goes while we look is told by inotify. */
	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return 0;
	if (S_ISLNK(st.st_mode) && links) {
		n = readlinkat(dirfd, name, target, sizeof(target) - 1);
		if (n < 0)
			return 0;
		target[n] = '\0';
		return add(l, path, &st, target);
	}
	if (links || (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode)))
		return 0;
	*ret_is_dir = S_ISDIR(st.st_mode);
	return add(l, path, &st, NULL);
}

/* One pass over a directory: its links, or all else with what is beneath. */
static int list_dir(struct listing *l, int parent, const char *name, const char *path, bool links,
		    unsigned depth, int notify_fd, const char *absolute);

static int list_beneath(struct listing *l, DIR *d, const char *path, bool links, unsigned depth,
			int notify_fd, const char *absolute)
{
	const struct dirent *e;
	int r = 0;

	while (r == 0 && (e = readdir(d))) {
		auto_free char *sub = NULL, *full = NULL;
		bool is_dir;

		if (str_eq(e->d_name, ".") || str_eq(e->d_name, ".."))
			continue;
		sub = *path ? str_join_path(path, e->d_name) : strdup(e->d_name);
		full = str_join_path(absolute, e->d_name);
		if (!sub || !full)
			return -ENOMEM;
		r = add_one(l, dirfd(d), e->d_name, sub, links, &is_dir);
		if (r == 0 && is_dir) {
			r = list_dir(l, dirfd(d), e->d_name, sub, true, depth + 1, notify_fd, full);
			if (r == 0)
				r = list_dir(l, dirfd(d), e->d_name, sub, false, depth + 1,
					     notify_fd, full);
		}
	}
	return r;
}

static int list_dir(struct listing *l, int parent, const char *name, const char *path, bool links,
		    unsigned depth, int notify_fd, const char *absolute)
{
	auto_closedir DIR *d = NULL;
	int r;

	if (depth > MAX_DEPTH)
		return -ELOOP;
	/* Before it is read, so that nothing is missed. */
	if (links && notify_fd >= 0)
		(void)inotify_add_watch(notify_fd, absolute, EVENTS);
	r = fd_opendir(parent, name, &d);
	/* One that went meanwhile is not there. */
	if (r < 0)
		return depth && r != -ENOMEM ? 0 : r;
	return list_beneath(l, d, path, links, depth, notify_fd, absolute);
}

static int list_source(const char *source, int notify_fd, struct listing *ret)
{
	struct listing l = { 0 };
	int r = list_dir(&l, AT_FDCWD, source, "", true, 0, notify_fd, source);

	if (r == 0)
		r = list_dir(&l, AT_FDCWD, source, "", false, 0, -1, source);
	if (r < 0) {
		listing_fini(&l);
		return r;
	}
	*ret = l;
	return 0;
}

static const struct entry *find(const struct listing *l, const char *path)
{
	for (size_t i = 0; i < l->n; i++)
		if (str_eq(l->v[i].path, path))
			return &l->v[i];
	return NULL;
}

static bool same(const struct entry *a, const struct entry *b)
{
	if (!a || a->st.st_mode != b->st.st_mode || a->st.st_uid != b->st.st_uid ||
	    a->st.st_gid != b->st.st_gid)
		return false;
	if (S_ISLNK(b->st.st_mode))
		return str_eq(a->target, b->target);
	return S_ISDIR(b->st.st_mode) ||
	       (a->st.st_ino == b->st.st_ino && a->st.st_size == b->st.st_size &&
		a->st.st_mtim.tv_sec == b->st.st_mtim.tv_sec &&
		a->st.st_mtim.tv_nsec == b->st.st_mtim.tv_nsec);
}

bool mirror_fits(const char *source)
{
	struct listing l = { 0 };
	bool fits = list_source(source, -1, &l) == 0;

	listing_fini(&l);
	return fits;
}

/* --- sending --- */

static void go_on(struct mirror *m);

static void unref(struct mirror *m)
{
	if (--m->refs)
		return;
	watch_free(m->watch);
	if (m->notify_fd >= 0)
		(void)close(m->notify_fd);
	listing_fini(&m->sent);
	listing_fini(&m->next);
	free(m->data);
	free(m->source);
	free(m->name);
	free(m);
}

static void begin(struct mirror *m);

static void on_retry(void *arg)
{
	struct mirror *m = arg;

	m->retry = NULL;
	if (!m->busy)
		begin(m);
}

/* A first copy that fails is the container's failure; later ones are tried again. */
static void report(struct mirror *m, const struct error *err)
{
	sandbox_done_fn done = m->done;

	m->done = NULL;
	if (done) {
		done(m->arg, err);
	} else if (err) {
		log_warn("copy '%s' to the guest: %s", m->source, err->msg);
		if (!m->retry && !m->dead)
			(void)!loop_timer_start(m->loop, RETRY_MS, on_retry, m, &m->retry);
	}
}

static void on_copied(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	struct mirror *m = arg;

	(void)answer;
	if (!m->dead) {
		if (err) {
			m->busy = false;
			report(m, err);
		} else {
			go_on(m);
		}
	}
	unref(m);
}

static int send_entry(struct mirror *m, const char *path, Grpc__CopyFileRequest *rq)
{
	auto_free char *full = str_printf(MIRROR_ROOT "/%s%s%s", m->name, *path ? "/" : "", path);
	int r;

	if (!full)
		return -ENOMEM;
	rq->path = full;
	rq->dir_mode = 0755;
	m->refs++;
	r = agent_copy_file(m->agent, rq, on_copied, m);
	if (r < 0)
		m->refs--;
	return r;
}

static void set_owner(Grpc__CopyFileRequest *rq, const struct stat *st)
{
	rq->file_mode = st->st_mode;
	rq->uid = (int32_t)st->st_uid;
	rq->gid = (int32_t)st->st_gid;
}

/* 1: read; 0: it has gone meanwhile. */
static int read_source(struct mirror *m, const struct entry *e)
{
	auto_close int root = open(m->source, O_PATH | O_DIRECTORY | O_CLOEXEC), fd = -1;
	size_t len = (size_t)e->st.st_size;
	ssize_t n;

	fd = root < 0 ? -errno : beneath_open(root, e->path, O_RDONLY | O_NONBLOCK, 0,
					      BENEATH_NO_SYMLINK);
	if (fd < 0) {
		m->stale = true;
		return 0;
	}
	m->data = malloc(len + 1);
	if (!m->data)
		return -ENOMEM;
	n = fd_read_full(fd, m->data, len);
	if (n < 0 || (size_t)n != len) {
		free(take_ptr(&m->data));
		m->stale = true;
		return 0;
	}
	m->data_len = len;
	m->data_off = 0;
	return 1;
}

static int send_chunk(struct mirror *m, const struct entry *e)
{
	Grpc__CopyFileRequest rq = GRPC__COPY_FILE_REQUEST__INIT;
	size_t n = MIN_OF(m->data_len - m->data_off, (size_t)CHUNK);
	int r;

	set_owner(&rq, &e->st);
	rq.file_size = (int64_t)m->data_len;
	rq.offset = (int64_t)m->data_off;
	rq.data = (ProtobufCBinaryData){ .data = (uint8_t *)m->data + m->data_off, .len = n };
	r = send_entry(m, e->path, &rq);
	m->data_off += n;
	if (m->data_off >= m->data_len)
		free(take_ptr(&m->data));
	return r < 0 ? r : 1;
}

static bool link_changed(const struct mirror *m, const struct entry *e)
{
	auto_free char *path = str_join_path(m->source, e->path);
	char target[PATH_MAX];
	ssize_t n = path ? readlink(path, target, sizeof(target) - 1) : -1;

	if (n < 0)
		return true;
	target[n] = '\0';
	return !str_eq(target, e->target);
}

/* 1: a call is under way; 0: there was nothing to do. */
static int send_one(struct mirror *m, const struct entry *e)
{
	Grpc__CopyFileRequest rq = GRPC__COPY_FILE_REQUEST__INIT;
	int r;

	if (same(find(&m->sent, e->path), e))
		return 0;
	if (S_ISREG(e->st.st_mode)) {
		r = read_source(m, e);
		return r == 1 ? send_chunk(m, e) : r;
	}
	if (e->target && link_changed(m, e)) {
		m->stale = true;
		return 0;
	}
	set_owner(&rq, &e->st);
	if (e->target)
		rq.data = (ProtobufCBinaryData){ .data = (uint8_t *)e->target,
						 .len = strlen(e->target) };
	r = send_entry(m, e->path, &rq);
	return r < 0 ? r : 1;
}

static int remove_one(struct mirror *m, const struct entry *e)
{
	Grpc__CopyFileRequest rq = GRPC__COPY_FILE_REQUEST__INIT;
	int r;

	if (find(&m->next, e->path))
		return 0;
	rq.remove = true;
	r = send_entry(m, e->path, &rq);
	return r < 0 ? r : 1;
}

/*
 * The plan: directories and files as they were listed (a directory is before what is in it), the
 * directory itself first; then links; then what has gone. @at counts through all of it.
 */
static int step(struct mirror *m)
{
	size_t n = m->next.n, i;
	int r = 0;

	if (m->data)
		return send_chunk(m, &m->next.v[m->at - 2]);
	while (r == 0 && !m->stale && m->at < 1 + 2 * n + m->sent.n) {
		i = m->at++;
		if (i == 0) {
			struct entry top = { .path = (char *)"" };

			if (!m->complete && stat(m->source, &top.st) == 0)
				r = send_one(m, &top);
		} else if (i <= 2 * n) {
			const struct entry *e = &m->next.v[(i - 1) % n];

			if (!!e->target == (i > n))
				r = send_one(m, e);
		} else {
			r = remove_one(m, &m->sent.v[m->sent.n - 1 - (i - 1 - 2 * n)]);
		}
	}
	return r;
}

/*
 * What the guest has after a round that was cut short: the files and directories that were sent,
 * and all that was there before. -ENOMEM.
 */
static int merge(struct mirror *m)
{
	struct listing now = { 0 };
	size_t n = MIN_OF(m->at >= 2 ? m->at - 2 : 0, m->next.n);
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++)
		if (!m->next.v[i].target)
			r = add(&now, m->next.v[i].path, &m->next.v[i].st, NULL);
	for (size_t i = 0; i < m->sent.n && r == 0; i++)
		if (!find(&now, m->sent.v[i].path))
			r = add(&now, m->sent.v[i].path, &m->sent.v[i].st, m->sent.v[i].target);
	if (r < 0) {
		listing_fini(&now);
		return r;
	}
	listing_fini(&m->sent);
	m->sent = now;
	return 0;
}

static void begin(struct mirror *m)
{
	struct error err = { 0 };
	int r;

	m->changed = m->stale = false;
	listing_fini(&m->next);
	r = list_source(m->source, m->notify_fd, &m->next);
	if (r < 0) {
		(void)error_errno(&err, r, "read '%s'", m->source);
		report(m, &err);
		return;
	}
	m->busy = true;
	m->at = 0;
	go_on(m);
}

static void go_on(struct mirror *m)
{
	struct error err = { 0 };
	int r = step(m);

	if (r == 1)
		return;
	m->busy = false;
	if (r == 0 && m->stale) {
		r = merge(m);
		if (r == 0) {
			begin(m);
			return;
		}
	}
	if (r < 0) {
		(void)error_errno(&err, r, "send '%s' to the guest", m->source);
		report(m, &err);
		return;
	}
	listing_fini(&m->sent);
	m->sent = m->next;
	m->next = (struct listing){ 0 };
	m->complete = true;
	if (m->changed)
		begin(m);
	else
		report(m, NULL);
}

static void on_notify(void *arg, int events)
{
	struct mirror *m = arg;
	char room[4096];

	(void)events;
	while (read(m->notify_fd, room, sizeof(room)) > 0)
		;
	m->changed = true;
	if (!m->busy && m->agent)
		begin(m);
}

int mirror_new(uv_loop_t *loop, const char *source, const char *name, struct mirror **ret,
	       struct error *err)
{
	struct mirror *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return error_set(err, -ENOMEM, "out of memory");
	m->refs = 1;
	m->loop = loop;
	m->source = strdup(source);
	m->name = strdup(name);
	m->notify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (!m->source || !m->name)
		r = -ENOMEM;
	else if (m->notify_fd < 0)
		r = -errno;
	else
		r = watch_new(loop, m->notify_fd, on_notify, m, &m->watch);
	if (r < 0) {
		unref(m);
		return error_errno(err, r, "watch '%s'", source);
	}
	*ret = m;
	return 0;
}

void mirror_start(struct mirror *m, struct agent_client *agent, sandbox_done_fn done, void *arg)
{
	m->agent = agent;
	m->done = done;
	m->arg = arg;
	watch_set(m->watch, UV_READABLE);
	begin(m);
}

void mirror_free(struct mirror *m)
{
	struct error err = { 0 };

	if (!m)
		return;
	m->dead = true;
	loop_timer_cancel(take_ptr(&m->retry));
	watch_free(take_ptr(&m->watch));
	if (m->done) {
		(void)error_set(&err, -ECANCELED, "the container has been given up");
		report(m, &err);
	}
	unref(m);
}
