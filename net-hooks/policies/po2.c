// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Power of two choices: of two random executors, the one with less to do.
 * Nearly as good as knowing the shortest queue, without looking at all of them.
 *
 * A bad idea when the app does not count down, or when datagrams overflow its
 * sockets: a lost request stays counted and its executor gets less and less.
 * An idle executor may be missed (scan-avoid looks at all of them).
 *
 * Maps: load, by executor index: requests outstanding. This policy adds one
 * per choice; the app atomically subtracts one when a request is done.
 */
#include <syrup/packet.h>

SYRUP_MAP_OF(load, __s64, 65536);

__s32 schedule(void *pkt_start, void *pkt_end)
{
	__u32 n = syrup_num_executors(), a = syrup_random() % n, b = syrup_random() % n;
	__s64 *load_a = syrup_map_lookup(&load, a), *load_b = syrup_map_lookup(&load, b);

	if (!load_a || !load_b)
		return SYRUP_PASS;
	if (*load_b < *load_a) {
		load_a = load_b;
		a = b;
	}
	__sync_fetch_and_add(load_a, 1);
	return a;
}
