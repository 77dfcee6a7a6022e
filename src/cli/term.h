/* The user's terminal: raw mode and size. */
#pragma once

#include <stdbool.h>

/* Makes the terminal on @fd raw; it is put back by term_restore() and at exit. */
int term_raw(int fd);
void term_restore(void);

/* -errno when @fd is no terminal. */
int term_size(int fd, unsigned *ret_rows, unsigned *ret_cols);
