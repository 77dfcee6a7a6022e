#include "../test.h"

#include "base/bytes.h"
#include "base/list.h"

struct item {
	int n;
	struct list link;
};

static void order_and_removal(void **state)
{
	struct list head = LIST_INIT(head);
	struct item items[4];
	struct item *i, *tmp;
	int sum = 0;

	assert_true(list_empty(&head));
	for (int k = 0; k < 4; k++) {
		items[k].n = k;
		list_push_back(&head, &items[k].link);
	}
	list_for_each(i, &head, link)
		sum = sum * 10 + i->n;
	assert_int_equal(sum, 123);
	list_for_each_safe(i, tmp, &head, link)
		if (i->n % 2)
			list_remove(&i->link);
	list_push_front(&head, &items[3].link);
	sum = 0;
	list_for_each(i, &head, link)
		sum = sum * 10 + i->n + 1;
	assert_int_equal(sum, 413);
	list_remove(&items[1].link); /* not linked: harmless */
}

static void byte_orders(void **state)
{
	uint8_t b[9] = { 0 };

	store_be32(b + 1, 0x01020304);
	assert_int_equal(b[1], 1);
	assert_int_equal(load_le32(b + 1), 0x04030201);
	store_le64(b + 1, 0x0102030405060708u);
	assert_int_equal(b[1], 8);
	assert_true(load_be64(b + 1) == 0x0807060504030201u);
	store_be16(b + 1, 0xabcd);
	assert_int_equal(load_be16(b + 1), 0xabcd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(order_and_removal),
		cmocka_unit_test(byte_orders),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
