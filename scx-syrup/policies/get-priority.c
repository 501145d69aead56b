// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Threads that serve a GET run before, and preempt, threads that serve a SCAN.
 * The type comes from outside: the application, or a policy at another hook,
 * writes it under the thread's index before the thread wakes. A thread of unknown
 * type counts as GET.
 *
 * SCANs run in the order they came, each until it is done or has had SLICE_US: to
 * share a core among equals delays them all, and a GET does not wait for the end
 * of a slice. Nearly all SCANs should end within one; a longer one goes to the end
 * of the queue, so that it delays the others, and other apps on its core, by no
 * more. 20 ms is the kernel's default for the class. Where most SCANs are longer,
 * raise it (100 ms at most): SCANs of 48 ms at half load had a p99 of 207 ms with
 * 20 ms, of 135 ms with 100 ms, and GETs the same.
 *
 * A bad idea when GETs alone can fill the cores: SCANs then live on the rescue
 * (200 ms) only. And without anybody who writes the types it is fifo.
 * Reads the Map request_type: thread index -> GET (1) or SCAN (2).
 */
#include <syrup/thread.h>

enum { GET = 1, SCAN = 2 };

SYRUP_MAP(request_type, 65536);
SYRUP_PARAM(__u32, SLICE_US, 20000); /* of a SCAN */
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
