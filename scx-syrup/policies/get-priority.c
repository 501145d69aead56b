// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Threads that serve a GET run before, and preempt, threads that serve a SCAN.
 * The type comes from outside: the application, or a policy at another hook,
 * writes it under the thread's index before the thread wakes. A thread of unknown
 * type counts as GET.
 *
 * SCANs run in the order they came, each until it is done or has had SLICE_US: to
 * share a core among equals delays them all, and a GET does not wait for the end
 * of a slice.
 *
 * A bad idea when GETs alone can fill the cores: SCANs then live on the rescue
 * (200 ms) only; or when SCANs differ much in length (lower SLICE_US). And
 * without anybody who writes the types it is fifo.
 * Reads the Map request_type: thread index -> GET (1) or SCAN (2).
 */
#include <syrup/thread.h>

enum { GET = 1, SCAN = 2 };

SYRUP_MAP(request_type, 65536);
SYRUP_PARAM(__u32, SLICE_US, 100000); /* of a SCAN */
SYRUP_THREAD_POLICY(.queues = 2,
		    .preempt = true); /* queue 0 is served first and preempts queue 1 */

__s32 schedule(struct syrup_thread *t)
{
	__u64 *type = syrup_map_lookup(&request_type, t->index);

	if (!type || *type != SCAN)
		return 0;
	t->slice_us = SLICE_US;
	return 1;
}
