/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* Input of thread policies: see struct syrup_thread in abi.h. */
#ifndef SYRUP_THREAD_H
#define SYRUP_THREAD_H

#include <syrup/policy.h>

/* The policy's entry point: a queue (or core) index, or SYRUP_PASS for the last queue. */
__s32 schedule(struct syrup_thread *t);

/* How many queues, or cores, schedule() may name now. Never 0. */
SYRUP_INLINE __u32 syrup_num_executors(void)
{
	return *(const volatile __u32 *)&syrup_nr_executors;
}

/*
 * SYRUP_THREAD_POLICY(.queues = 2, .preempt = true): what the root scheduler
 * must know before the first thread comes; fields of struct
 * syrup_thread_policy. Without it: one queue, no preemption.
 */
#define SYRUP_THREAD_POLICY(...)                                                                   \
	const struct syrup_thread_policy syrup_thread_policy __attribute__((used)) = {__VA_ARGS__}

#endif /* SYRUP_THREAD_H */
