/* SPDX-License-Identifier: Apache-2.0 */
/* See files.h. */
#include "sandbox/files.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "oci/oci.h"
#include "sandbox/handover.h"
#include "sandbox/watch.h"

#define FILES_MAX 16u
#define FILE_SIZE_MAX ((size_t)256 << 10)

struct copied {
	char *host, *guest;
	char *text; /* what the guest has; NULL: nothing yet */
	size_t len;
};

struct files {
	struct sandbox *s;
	struct copied v[FILES_MAX];
	size_t n;
	int inotify;
	struct watch *watch;
};

static bool take_option(Grpc__Mount *m, const char *option)
{
	for (size_t i = 0; i < m->n_options; i++) {
		if (!str_eq(m->options[i], option))
			continue;
		free(m->options[i]);
		memmove(&m->options[i], &m->options[i + 1],
			(m->n_options - i - 1) * sizeof(*m->options));
		m->n_options--;
		return true;
	}
	return false;
}

static int take_one(struct container *c, struct files *f, Grpc__Mount *m, struct error *err)
{
	struct copied *file = &f->v[f->n];

	if (f->n == FILES_MAX)
		return error_set(err, -E2BIG, "more than %u mounts are to be copied", FILES_MAX);
	file->host = strdup(m->source);
	file->guest = str_printf(FILES_GUEST_DIR "/%s/%zu", c->guest_id, f->n);
	f->n++;
	if (!file->host || !file->guest || oci_str_set(&m->source, file->guest) < 0 ||
	    oci_str_set(&m->type, "bind") < 0)
		return error_set(err, -ENOMEM, "out of memory");
	return 0;
}

int files_take(struct container *c, struct error *err)
{
	for (size_t i = 0; i < c->spec->n_mounts; i++) {
		int r;

		if (!take_option(c->spec->mounts[i], SANDBOX_COPY_OPTION))
			continue;
		if (!c->files) {
			c->files = calloc(1, sizeof(*c->files));
			if (!c->files)
				return error_set(err, -ENOMEM, "out of memory");
			c->files->s = c->s;
			c->files->inotify = -1;
		}
		r = take_one(c, c->files, c->spec->mounts[i], err);
		if (r < 0)
			return r;
	}
	return 0;
}

static void on_copied(void *arg, const struct error *err, const Google__Protobuf__Empty *answer)
{
	(void)arg;
	(void)answer;
	if (err)
		log_warn("copy a file to the guest: %s", err->msg);
}

static void send_one(struct sandbox *s, struct copied *file)
{
	Grpc__CopyFileRequest req = GRPC__COPY_FILE_REQUEST__INIT;
	char *text = NULL;
	size_t len = 0;
	int r = fd_read_file(AT_FDCWD, file->host, FILE_SIZE_MAX, &text, &len);

	if (r < 0) {
		/* Its container is just going. */
		if (r != -ENOENT || !file->text)
			log_warn("read '%s': %s", file->host, strerror(-r));
		return;
	}
	if (file->text && len == file->len && memcmp(text, file->text, len) == 0) {
		free(text);
		return;
	}
	free(file->text);
	file->text = text;
	file->len = len;
	req.path = file->guest;
	req.file_size = (int64_t)len;
	req.file_mode = S_IFREG | 0644;
	req.dir_mode = 0755;
	req.data = (ProtobufCBinaryData){ .len = len, .data = (uint8_t *)text };
	r = agent_copy_file(s->agent, &req, on_copied, NULL);
	if (r < 0)
		log_warn("copy '%s' to the guest: %s", file->host, strerror(-r));
}

static void on_change(void *arg, int events)
{
	struct files *f = arg;
	char drop[4096];

	(void)events;
	while (read(f->inotify, drop, sizeof(drop)) > 0)
		;
	for (size_t i = 0; i < f->n && f->s->state == VM_READY; i++)
		send_one(f->s, &f->v[i]);
}

/* The folder, not the files: they are replaced by renaming. */
static int follow(struct files *f)
{
	auto_free char *dir = strdup(f->v[0].host);
	char *slash = dir ? strrchr(dir, '/') : NULL;

	if (!slash)
		return -ENOMEM;
	*slash = '\0';
	f->inotify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	if (f->inotify < 0 ||
	    inotify_add_watch(f->inotify, dir, IN_MOVED_TO | IN_CLOSE_WRITE | IN_ONLYDIR) < 0 ||
	    watch_new(f->s->loop, f->inotify, on_change, f, &f->watch) < 0)
		return -errno;
	watch_set(f->watch, UV_READABLE);
	return 0;
}

void files_send(struct container *c)
{
	struct files *f = c->files;

	if (!f)
		return;
	/* Before they are read: no change is missed. */
	if (follow(f) < 0)
		log_warn("changes of '%s' will not be seen by the guest", f->v[0].host);
	for (size_t i = 0; i < f->n; i++)
		send_one(f->s, &f->v[i]);
}

void files_save(const struct files *f, struct arena *a, HandoverContainer *m)
{
	Caisson__Handover__V1__CopiedFile *v;

	if (!f)
		return;
	v = arena_alloc(a, f->n, sizeof(*v));
	m->files = arena_alloc(a, f->n, sizeof(*m->files));
	for (size_t i = 0; v && m->files && i < f->n; i++) {
		caisson__handover__v1__copied_file__init(&v[i]);
		v[i].host = handover_text(f->v[i].host);
		v[i].guest = handover_text(f->v[i].guest);
		m->files[m->n_files++] = &v[i];
	}
}

int files_restore(struct container *c, const HandoverContainer *m)
{
	struct files *f;
	int r = 0;

	if (m->n_files == 0)
		return 0;
	f = m->n_files <= FILES_MAX ? calloc(1, sizeof(*f)) : NULL;
	if (!f)
		return m->n_files <= FILES_MAX ? -ENOMEM : -EINVAL;
	f->s = c->s;
	f->inotify = -1;
	c->files = f;
	for (; f->n < m->n_files && r == 0; f->n++) {
		r = handover_copy(&f->v[f->n].host, m->files[f->n]->host);
		if (r == 0)
			r = handover_copy(&f->v[f->n].guest, m->files[f->n]->guest);
		if (r == 0 && (!f->v[f->n].host || !f->v[f->n].guest))
			r = -EINVAL;
	}
	return r;
}

void files_free(struct files *f)
{
	if (!f)
		return;
	watch_free(f->watch);
	cleanup_close_(&f->inotify);
	for (size_t i = 0; i < f->n; i++) {
		free(f->v[i].host);
		free(f->v[i].guest);
		free(f->v[i].text);
	}
	free(f);
}
