/*
 * A user id for each VM, out of a range that the host sets aside. Who has which is told by symbolic links in
 * one directory: their names are the numbers, their texts tell the VM's directory by device and inode, as
 * that may be renamed. A link is made after the VM's record names it, and removed by vmm_reclaim(). Private
 * to the client library.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "vmm/record.h"
#include "vmm/vmm.h"

/*
 * Takes one that no VM of @range's directory has for the VM of the directory @dirfd, and hands
 * over what its processes have to reach: they may enter the directory, and connect to its sockets. @rec is
 * written there before anything is taken. 0 and nothing in @rec where @range is empty.
 */
__must_check int uid_claim(const struct vmm_uids *range, int dirfd, struct record *rec,
			   struct error *err);
/* Gives back what @rec names, if it is this directory's. May be repeated. */
__must_check int uid_release(int dirfd, const struct record *rec, struct error *err);
/* The same for a socket in @dirfd made later: for the VM's user if it has one. */
__must_check int uid_hand_over(int dirfd, const char *name);
