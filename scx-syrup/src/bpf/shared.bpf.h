/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the root scheduler and the trusted half of policies share: what a policy is
 * asked, and what it answers. Maps of the root's, which a policy's loader hands to it by
 * name.
 */
#ifndef SYRUP_SCX_SHARED_BPF_H
#define SYRUP_SCX_SHARED_BPF_H

#include "kfuncs.bpf.h"
#include "layout.h"

/*
 * The thread being queued on this CPU, as its policy sees it. In a map of its
 * own rather than on the stack: the verifier then keeps schedule() inside these
 * 64 bytes, where a stack would also hold the task pointer. ops.enqueue runs
 * with the run queue locked and interrupts off, so nothing else on this CPU
 * uses the entry meanwhile.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct syrup_thread);
} syrup_input SEC(".maps");

/*
 * What the policy said of it. The root scheduler writes it before it calls the policy,
 * whose trusted half overwrites it.
 */
struct syrup_choice {
	u32 counter; /* what is counted: SYRUP_CHOSEN, ...; SYRUP_NO_POLICY when none was called */
	u32 place;   /* when chosen: a queue, or a core's */
	u32 preempt; /* it may preempt threads of lower queues */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct syrup_choice);
} syrup_choice SEC(".maps");

/* Places of an app: its queues, then one for each of its cores. */
#define CORE_PLACE 0x8000

/* Nothing comes for what waits for a CPU that is offline. */
static __always_inline bool is_online(u32 cpu)
{
	const struct cpumask *online = scx_bpf_get_online_cpumask();
	bool is = bpf_cpumask_test_cpu(cpu, online);

	scx_bpf_put_cpumask(online);
	return is;
}

#endif /* SYRUP_SCX_SHARED_BPF_H */
