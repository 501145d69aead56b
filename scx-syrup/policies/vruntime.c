// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Fair by run time: the thread that has run least, by the weight of its nice value, is next.
 * A thread that slept comes back at most LAG_US behind the others, so that a
 * long sleep is no right to a long monopoly.
 *
 * A bad idea for request serving with a tail goal: it slices long requests and
 * makes all of them late together. Slices (SLICE_US) bound how unfair it is at any
 * moment, and cost a switch each.
 * Reads and writes the Maps vruntime (thread id modulo its size -> how far the
 * thread's clock was moved ahead for its sleeps) and vruntime_clock (0 -> the
 * app's clock).
 */
#include <syrup/thread.h>

#define THREADS 4096

SYRUP_PARAM(__u32, SLICE_US, 4000);
SYRUP_PARAM(__u32, LAG_US, 20000);

struct ahead {
	__u64 ns;
	__u32 tid; /* whose it is: ids may share an entry */
	__u32 _pad;
};

SYRUP_MAP_OF(vruntime, struct ahead, THREADS);
SYRUP_MAP(vruntime_clock, 1); /* the furthest virtual time at which a thread began to run */
SYRUP_THREAD_POLICY(.queues = 1);

__s32 schedule(struct syrup_thread *t)
{
	struct ahead *ahead = syrup_map_lookup(&vruntime, t->tid % THREADS);
	__u64 *clock = syrup_map_lookup(&vruntime_clock, 0);
	__u64 vruntime = t->runtime_ns * 100 / (t->weight ? t->weight : 100);
	__u64 floor, started;

	t->slice_us = SLICE_US;
	if (!ahead || !clock)
		return SYRUP_PASS;
	if (ahead->tid != t->tid) {
		/* New here, or its entry was taken: it starts at the app's clock. */
		ahead->tid = t->tid;
		ahead->ns = *clock > vruntime ? *clock - vruntime : 0;
	}
	vruntime += ahead->ns;
	floor = *clock - LAG_US * 1000ULL;
	if ((t->flags & SYRUP_THREAD_WAKEUP) && (__s64)(vruntime - floor) < 0) {
		ahead->ns += floor - vruntime;
		vruntime = floor;
	}
	/* It ran until now, so at the start of its slice it was the one furthest behind. */
	started = vruntime - SLICE_US * 1000ULL;
	if ((__s64)(started - *clock) > 0)
		*clock = started;
	t->rank = vruntime;
	return 0;
}
