// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Keeps requests away from executors that serve, or are about to serve, a
 * SCAN: tries TRIES random ones, then each in turn. If all of them do, a random
 * one.
 *
 * Only in turn from a random start would be shorter, and would give whoever
 * comes after a SCAN its share as well: simulated at 36 % load, that costs GETs
 * half of their p99 again (50 instead of 34 us), and more with every us a
 * request really takes longer.
 *
 * Wire format: the payload starts with a __u64 request type, GET = 1, SCAN = 2.
 *
 * A bad idea when nobody writes idle back into the Map after a SCAN (every
 * executor ends up labelled SCAN and the choice is random), or when SCANs fill
 * all executors anyway. Shorter datagrams, and all TCP connections (a SYN
 * carries no request), are spread without regard to their type.
 *
 * Maps: request_type, by executor index: 0 idle, GET, SCAN.
 *  - This policy labels the executor it chose with the packet's type, before
 *    the executor's thread wakes: a thread policy (get-priority) finds the type
 *    at wakeup, and the next packet avoids a queued SCAN at once. It swaps
 *    against the label it looked at, so it never turns a SCAN into a GET.
 *  - The server, taking a request: stores SCAN; or swaps its last type, else
 *    idle, for GET, so that the label of a SCAN that waits behind it stands.
 *  - With its socket empty: swaps its last type for idle. A label it did not
 *    write is of a packet on its way; if none comes, of one that found the
 *    socket full and was lost, and is swapped for idle too.
 */
#include <syrup/packet.h>

enum { IDLE, GET, SCAN, TRIES = 8 };
SYRUP_MAP(request_type, 65536);

__s32 schedule(void *pkt_start, void *pkt_end)
{
	__u32 n = syrup_num_executors(), next = syrup_random(), index = 0;
	__u64 type = GET, seen, *label;

	SYRUP_READ(pkt_start, pkt_end, SYRUP_UDP_PAYLOAD, &type);
	for (__u32 i = 0; i < TRIES + n && i < SYRUP_MAX_EXECUTORS; i++) {
		index = next % n;
		label = syrup_map_lookup(&request_type, index);
		if (!label)
			return SYRUP_PASS;
		seen = *label;
		if (seen != SCAN &&
		    __sync_bool_compare_and_swap(label, seen, type == SCAN ? SCAN : GET))
			return index;
		next = i < TRIES - 1 ? syrup_random() : next + 1;
	}
	return index;
}
