// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * First come, first served: one queue in the order in which threads became runnable.
 * A thread that is preempted keeps its place; one that used its slice up (20 ms)
 * goes to the end.
 *
 * A bad idea when service times differ much: short requests wait behind long ones.
 * Reads no Maps.
 */
#include <syrup/thread.h>

SYRUP_THREAD_POLICY(.queues = 1);

__s32 schedule(struct syrup_thread *t)
{
	(void)t;
	return 0;
}
