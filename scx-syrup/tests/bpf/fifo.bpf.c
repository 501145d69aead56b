// SPDX-License-Identifier: GPL-2.0-only
/*
 * The least that a sched_ext scheduler can be: an idle CPU gets the thread at once, all others
 * take from one queue. What the root scheduler's costs are measured against.
 */
#include "kfuncs.bpf.h"

char _license[] SEC("license") = "GPL";

#define QUEUE    0
#define SLICE_NS 20000000ULL

s32 scx_bpf_select_cpu_dfl(struct task_struct *p, s32 prev_cpu, u64 wake_flags,
			   bool *is_idle) __ksym;

s32 SEC("struct_ops/select_cpu")
	BPF_PROG(fifo_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	bool is_idle = false;
	s32 cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &is_idle);

	if (is_idle)
		scx_bpf_dsq_insert(p, ENUM(scx_dsq_id_flags, SCX_DSQ_LOCAL), SLICE_NS, 0);
	return cpu;
}

void SEC("struct_ops/enqueue") BPF_PROG(fifo_enqueue, struct task_struct *p, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, QUEUE, SLICE_NS, enq_flags);
}

void SEC("struct_ops/dispatch") BPF_PROG(fifo_dispatch, s32 cpu, struct task_struct *prev)
{
	scx_bpf_dsq_move_to_local(QUEUE, 0);
}

s32 SEC("struct_ops.s/init") BPF_PROG(fifo_init)
{
	return scx_bpf_create_dsq(QUEUE, -1);
}

SEC(".struct_ops.link")
struct sched_ext_ops fifo = {
	.select_cpu = (void *)fifo_select_cpu,
	.enqueue = (void *)fifo_enqueue,
	.dispatch = (void *)fifo_dispatch,
	.init = (void *)fifo_init,
	.flags = 1 << 3, /* SCX_OPS_SWITCH_PARTIAL */
	.name = "fifo",
};
