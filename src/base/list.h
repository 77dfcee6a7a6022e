/* An intrusive, circular, doubly linked list. An unlinked node points to itself. */
#pragma once

#include <stdbool.h>

#include "base/cleanup.h"

struct list {
	struct list *prev, *next;
};

#define LIST_INIT(name) { &(name), &(name) }

static inline void list_init(struct list *l)
{
	l->prev = l->next = l;
}

static inline bool list_empty(const struct list *l)
{
	return l->next == l;
}

static inline void list_insert_(struct list *node, struct list *prev, struct list *next)
{
	node->prev = prev;
	node->next = next;
	prev->next = node;
	next->prev = node;
}

static inline void list_push_back(struct list *head, struct list *node)
{
	list_insert_(node, head->prev, head);
}

static inline void list_push_front(struct list *head, struct list *node)
{
	list_insert_(node, head, head->next);
}

/* Safe on a node that isn't linked. */
static inline void list_remove(struct list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	list_init(node);
}

#define list_entry(ptr, type, member) container_of(ptr, type, member)

#define list_for_each(pos, head, member)                                            \
	for (pos = list_entry((head)->next, __typeof__(*pos), member);              \
	     &pos->member != (head);                                                \
	     pos = list_entry(pos->member.next, __typeof__(*pos), member))

/* The body may remove and free @pos. */
#define list_for_each_safe(pos, tmp, head, member)                                  \
	for (pos = list_entry((head)->next, __typeof__(*pos), member),              \
	    tmp = list_entry(pos->member.next, __typeof__(*pos), member);           \
	     &pos->member != (head);                                                \
	     pos = tmp, tmp = list_entry(tmp->member.next, __typeof__(*tmp), member))
