#include "vmm/kvm/kernel.h"

#include <elf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "vmm/kvm/layout.h"

#define MAX_SEGMENTS 32u
#define MAX_NOTES    (64u * 1024u)
#define NOTE_PVH     18u /* XEN_ELFNOTE_PHYS32_ENTRY */

#define SETUP_AT      0x1f1u
#define SETUP_SECTS   (0x1f1u - SETUP_AT)
#define SETUP_HDRS    (0x202u - SETUP_AT)
#define SETUP_VERSION (0x206u - SETUP_AT)
#define SETUP_XLOAD   (0x236u - SETUP_AT)
#define SETUP_CMDLINE (0x238u - SETUP_AT)
#define SETUP_PREF    (0x258u - SETUP_AT)
#define SETUP_INIT    (0x260u - SETUP_AT)
#define XLF_KERNEL_64 1u
#define ENTRY_64      0x200u

struct source {
	int fd;
	uint64_t size;
};

/* All of it, or -ENOEXEC where the file is shorter than it says. */
static int read_at(const struct source *src, void *buf, size_t len, uint64_t off)
{
	uint8_t *p = buf;

	if (off > src->size || len > src->size - off)
		return -ENOEXEC;
	while (len > 0) {
		ssize_t n = pread(src->fd, p, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENOEXEC;
		p += n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

/* Where [@addr, @addr + @len) is, if a kernel may lie there. */
static uint8_t *place(const struct gmem *mem, uint64_t low_end, uint64_t addr, uint64_t len)
{
	if (addr < LAYOUT_HIGH || addr > low_end || len > low_end - addr)
		return NULL;
	return gmem_at(mem, (gpa_t){ addr }, len);
}

static int load_segment(const struct gmem *mem, uint64_t low_end, const struct source *src,
			const Elf64_Phdr *ph, struct error *err)
{
	uint8_t *to = place(mem, low_end, ph->p_paddr, ph->p_memsz);
	int r;

	if (ph->p_filesz > ph->p_memsz)
		return error_set(err, -ENOEXEC, "a segment is longer in the file than in memory");
	if (!to)
		return error_set(
			err, -ENOEXEC,
			"a segment of %llu bytes at %#llx does not fit into the guest's memory",
			(unsigned long long)ph->p_memsz, (unsigned long long)ph->p_paddr);
	gmem_expect_use(mem, ph->p_paddr, ph->p_memsz);
	/* Memory is fresh: what the file does not fill is zero, unless segments overlap. */
	r = read_at(src, to, ph->p_filesz, ph->p_offset);
	return r < 0 ? error_set(err, r, "a segment lies outside of the file") : 0;
}

/* What the notes of a kernel say of its entries. */
struct entries {
	bool linux; /* the ELF file's own entry is that of the 64-bit boot protocol */
	bool has_pvh;
	uint32_t pvh;
};

static void read_entries(const uint8_t *notes, size_t len, struct entries *ret)
{
	while (len >= sizeof(Elf64_Nhdr)) {
		uint64_t name = load_le32(notes), desc = load_le32(notes + 4);
		uint32_t type = load_le32(notes + 8);
		uint64_t name_end = sizeof(Elf64_Nhdr) + ((name + 3) & ~UINT64_C(3));
		uint64_t end = name_end + ((desc + 3) & ~UINT64_C(3));

		if (name_end + desc > len)
			return;
		if (type == NOTE_PVH && name == 4 && desc >= 4 &&
		    memcmp(notes + sizeof(Elf64_Nhdr), "Xen", 4) == 0) {
			ret->has_pvh = true;
			ret->pvh = load_le32(notes + name_end);
		}
		if (name == 6 && memcmp(notes + sizeof(Elf64_Nhdr), "Linux", 6) == 0)
			ret->linux = true;
		if (end >= len)
			return;
		notes += end;
		len -= end;
	}
}

static int read_notes(const struct source *src, const Elf64_Phdr *ph, struct kernel_image *image)
{
	auto_free uint8_t *notes = NULL;
	struct entries entries = { 0 };

	if (ph->p_filesz > MAX_NOTES)
		return -ENOEXEC;
	notes = malloc(ph->p_filesz ? ph->p_filesz : 1);
	if (!notes)
		return -ENOMEM;
	if (read_at(src, notes, ph->p_filesz, ph->p_offset) < 0)
		return -ENOEXEC;
	read_entries(notes, ph->p_filesz, &entries);
	/* A Linux that starts by PVH asks 256 CPUID leaves for Xen first, and each is an exit. */
	if (entries.linux || !entries.has_pvh)
		return 0;
	image->entry = KERNEL_ENTRY_PVH;
	image->entry_addr = entries.pvh;
	return 0;
}

static int load_elf(const struct gmem *mem, uint64_t low_end, const struct source *src,
		    struct kernel_image *image, struct error *err)
{
	Elf64_Phdr ph[MAX_SEGMENTS];
	Elf64_Ehdr eh;
	bool any = false;
	int r = read_at(src, &eh, sizeof(eh), 0);

	if (r < 0 || eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_ident[EI_DATA] != ELFDATA2LSB ||
	    eh.e_machine != EM_X86_64 || eh.e_phentsize != sizeof(ph[0]))
		return error_set(err, -ENOEXEC, "not an x86-64 ELF file");
	if (eh.e_phnum == 0 || eh.e_phnum > MAX_SEGMENTS ||
	    read_at(src, ph, eh.e_phnum * sizeof(ph[0]), eh.e_phoff) < 0)
		return error_set(err, -ENOEXEC, "the ELF file's program headers are malformed");
	image->entry = KERNEL_ENTRY_64;
	image->entry_addr = eh.e_entry;
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		if (ph[i].p_type == PT_NOTE) {
			r = read_notes(src, &ph[i], image);
			if (r < 0)
				return error_set(err, r, "the ELF file's notes are malformed");
		}
		if (ph[i].p_type != PT_LOAD || ph[i].p_memsz == 0)
			continue;
		r = load_segment(mem, low_end, src, &ph[i], err);
		if (r < 0)
			return r;
		any = true;
		image->end = MAX_OF(image->end, (uint64_t)(ph[i].p_paddr + ph[i].p_memsz));
	}
	if (!any || image->entry_addr < LAYOUT_HIGH || image->entry_addr >= image->end)
		return error_set(err, -ENOEXEC, "the kernel's entry %#llx lies outside of it",
				 (unsigned long long)image->entry_addr);
	return 0;
}

static int load_bzimage(const struct gmem *mem, uint64_t low_end, const struct source *src,
			struct kernel_image *image, struct error *err)
{
	uint8_t *setup = image->setup, *to;
	uint64_t skip, len, at, room;
	int r = read_at(src, setup, sizeof(image->setup), SETUP_AT);

	if (r < 0 || memcmp(setup + SETUP_HDRS, "HdrS", 4) != 0)
		return error_set(err, -ENOEXEC, "neither an ELF file nor a bzImage");
	if (load_le16(setup + SETUP_VERSION) < 0x20c ||
	    !(load_le16(setup + SETUP_XLOAD) & XLF_KERNEL_64))
		return error_set(err, -ENOEXEC, "the bzImage has no 64-bit entry");
	skip = ((setup[SETUP_SECTS] ? setup[SETUP_SECTS] : 4u) + 1u) * 512u;
	if (skip >= src->size)
		return error_set(err, -ENOEXEC, "the bzImage is cut");
	len = src->size - skip;
	at = load_le64(setup + SETUP_PREF);
	/* It unpacks itself where it lies, and says how much room that takes. */
	room = MAX_OF((uint64_t)load_le32(setup + SETUP_INIT), len);
	to = place(mem, low_end, at, room);
	if (!to || len <= ENTRY_64)
		return error_set(
			err, -ENOEXEC,
			"a kernel of %llu bytes at %#llx does not fit into the guest's memory",
			(unsigned long long)room, (unsigned long long)at);
	gmem_expect_use(mem, at, room);
	r = read_at(src, to, len, skip);
	if (r < 0)
		return error_errno(err, r, "read the kernel");
	image->entry = KERNEL_ENTRY_64;
	image->entry_addr = at + ENTRY_64;
	image->end = at + room;
	image->cmdline_max = load_le32(setup + SETUP_CMDLINE);
	return 0;
}

int kernel_load(const struct gmem *mem, uint64_t low_end, int fd, struct kernel_image *ret_image,
		struct error *err)
{
	struct kernel_image image = { .cmdline_max = LAYOUT_CMDLINE_MAX - 1 };
	struct source src = { .fd = fd };
	struct stat st;
	char magic[SELFMAG];
	int r;

	if (fstat(fd, &st) < 0)
		return error_errno(err, -errno, "the kernel");
	src.size = st.st_size > 0 ? (uint64_t)st.st_size : 0;
	r = read_at(&src, magic, sizeof(magic), 0);
	if (r < 0)
		return error_set(err, r, "the kernel's file is too short");
	r = memcmp(magic, ELFMAG, SELFMAG) == 0 ? load_elf(mem, low_end, &src, &image, err)
						: load_bzimage(mem, low_end, &src, &image, err);
	if (r < 0)
		return r;
	image.cmdline_max = MIN_OF(image.cmdline_max, LAYOUT_CMDLINE_MAX - 1);
	*ret_image = image;
	return 0;
}
