// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Answers what the test wrote under the thread's index, and writes down what it was told.
 * Its attributes are the test's as well: the hook reads them beside the object.
 *
 * A bad idea outside tests.
 * Reads the Map place (thread index -> answer); writes the Maps told (a ring) and
 * told_next (0 -> how many were written).
 */
#include <syrup/thread.h>

#define RING 16384

struct place {
	__s32 verdict;
	__u32 slice_us; /* 0: as it comes */
	__u64 rank;     /* 0: as it comes */
};

struct told {
	struct syrup_thread thread;
	__u64 now_ns;
	__u32 nr_executors;
	__s32 verdict;
};

SYRUP_MAP_OF(place, struct place, 64);
SYRUP_MAP_OF(told, struct told, RING);
SYRUP_MAP(told_next, 1);

__s32 schedule(struct syrup_thread *t)
{
	struct place *answer = syrup_map_lookup(&place, t->index);
	__u64 *next = syrup_map_lookup(&told_next, 0);
	__s32 verdict = answer ? answer->verdict : SYRUP_PASS;
	struct told *entry;

	if (next) {
		entry = syrup_map_lookup(&told, __sync_fetch_and_add(next, 1) % RING);
		if (entry) {
			entry->thread = *t;
			entry->now_ns = syrup_now_ns();
			entry->nr_executors = syrup_num_executors();
			entry->verdict = verdict;
		}
	}
	if (answer && answer->slice_us)
		t->slice_us = answer->slice_us;
	if (answer && answer->rank)
		t->rank = answer->rank;
	return verdict;
}
