#include "vmm/kernel.h"

#include <elf.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/fd.h"

#define MAX_SEGMENTS 32u
#define NOTES_MAX    4096u
#define NOTE_NAME    "Caisson"
#define NOTE_TYPE    1u

static uint32_t align4(uint32_t n)
{
	return (n + 3) & ~3u;
}

/* The file is not trusted: anything odd ends the search. */
static uint32_t find_note(const uint8_t *data, size_t len)
{
	while (len >= sizeof(Elf64_Nhdr)) {
		uint32_t name = load_le32(data), desc = load_le32(data + 4);
		uint32_t type = load_le32(data + 8);
		size_t at = sizeof(Elf64_Nhdr);

		if (name > NOTES_MAX || desc > NOTES_MAX ||
		    at + align4(name) + align4(desc) > len)
			return 0;
		if (type == NOTE_TYPE && name == sizeof(NOTE_NAME) && desc >= 4 &&
		    memcmp(data + at, NOTE_NAME, sizeof(NOTE_NAME)) == 0)
			return load_le32(data + at + align4(name));
		at += align4(name) + align4(desc);
		data += at;
		len -= at;
	}
	return 0;
}

static uint32_t read_features(int fd, const Elf64_Ehdr *eh)
{
	uint8_t notes[NOTES_MAX];
	uint32_t features = 0;
	Elf64_Phdr ph;

	if (eh->e_phentsize != sizeof(ph) || eh->e_phoff > INT32_MAX)
		return 0;
	for (unsigned i = 0; i < eh->e_phnum && i < MAX_SEGMENTS && !features; i++) {
		off_t at = (off_t)(eh->e_phoff + i * sizeof(ph));

		if (fd_pread_full(fd, &ph, sizeof(ph), at) != (ssize_t)sizeof(ph))
			return 0;
		if (ph.p_type != PT_NOTE || ph.p_offset > INT64_MAX || ph.p_filesz > sizeof(notes))
			continue;
		if (fd_pread_full(fd, notes, ph.p_filesz, (off_t)ph.p_offset) ==
		    (ssize_t)ph.p_filesz)
			features = find_note(notes, ph.p_filesz);
	}
	return features;
}

int kernel_inspect(const char *path, uint32_t *ret_features, struct error *err)
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	Elf64_Ehdr eh = { 0 };
	ssize_t n = fd < 0 ? -errno : fd_pread_full(fd, &eh, sizeof(eh), 0);

	if (n < 0)
		return error_errno(err, (int)n, "the kernel '%s'", path);
	if (n != (ssize_t)sizeof(eh) || memcmp(eh.e_ident, ELFMAG, SELFMAG) != 0 ||
	    eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_ident[EI_DATA] != ELFDATA2LSB ||
	    eh.e_machine != EM_X86_64)
		return error_set(err, -ENOEXEC,
				 "the kernel '%s' is not an uncompressed x86-64 ELF image", path);
	*ret_features = read_features(fd, &eh);
	return 0;
}
