// Ends kernels in ways that user space has no means for: a word written to /proc/breaker names one. Each has a
// function of its own, which reports of the kernel name. For kernels from 5.10 on.

#include <linux/acpi.h>
#include <linux/completion.h>
#include <linux/cper.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/nmi.h>
#include <linux/perf_event.h>
#include <linux/proc_fs.h>
#include <linux/rcupdate.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <asm/nmi.h>

// The compiler must not know what these hold.
static unsigned long *volatile nowhere;
static volatile unsigned long zero;
static volatile unsigned long many = 200;
// Keeps calls from becoming jumps, which leave no frame.
static volatile int calls;

static noinline void breaker_null(void)
{
	*nowhere = 1;
	calls++;
}

static noinline void breaker_bug(void)
{
	BUG_ON(!zero);
	calls++;
}

static noinline void breaker_protection(void)
{
	// Not a canonical address on any machine.
	*(volatile unsigned long *)(0x5a5a5a5a5a5a5a5aUL + zero) = 1;
	calls++;
}

static noinline void breaker_divide(void)
{
	many = many / zero;
	calls++;
}

// Calls a function where there is none.
static noinline void breaker_jump(void)
{
	((void (*)(void))nowhere)();
	calls++;
}

static noinline void breaker_expired(struct timer_list *timer)
{
	breaker_null();
	calls++;
}

static DEFINE_TIMER(breaker_timer, breaker_expired);

// An oops outside of any task.
static noinline void breaker_interrupt(void)
{
	mod_timer(&breaker_timer, jiffies + HZ / 10);
	ssleep(60);
	calls++;
}

static noinline void breaker_spin(void)
{
	while (!zero)
		cpu_relax();
	calls++;
}

// A kernel that can take away a CPU anywhere does so unless it is told not to.
static noinline void breaker_busy(void)
{
	preempt_disable();
	breaker_spin();
	preempt_enable();
	calls++;
}

static void breaker_done(struct rcu_head *head)
{
}

// Somebody waits for RCU meanwhile.
static noinline void breaker_stall(void)
{
	static struct rcu_head head;

	call_rcu(&head, breaker_done);
	breaker_busy();
	calls++;
}

static DEFINE_SPINLOCK(breaker_lock);
static DEFINE_MUTEX(breaker_mutex);

static __always_inline void breaker_try(void)
{
	void *memory = kmalloc(128 + calls % 512, GFP_ATOMIC);

	kfree(memory);
	spin_lock(&breaker_lock);
	calls += ktime_get_ns() & 1;
	spin_unlock(&breaker_lock);
	udelay(calls % 30);
	if (mutex_trylock(&breaker_mutex))
		mutex_unlock(&breaker_mutex);
}

// Busy with other functions most of the time.
static noinline void breaker_retry(void)
{
	preempt_disable();
	while (!zero)
		breaker_try();
	preempt_enable();
	calls++;
}

static noinline void breaker_lock_twice(void)
{
	spin_lock(&breaker_lock);
	spin_lock(&breaker_lock);
	calls++;
}

// Finds a function of the kernel that modules are not given.
static unsigned long find(const char *name)
{
	struct kprobe probe = { .symbol_name = name };
	unsigned long address = 0;

	if (register_kprobe(&probe) == 0) {
		address = (unsigned long)probe.addr;
		unregister_kprobe(&probe);
	}
	return address;
}

static void (*overflow)(struct perf_event *, struct perf_sample_data *, struct pt_regs *);

// The counter of cycles, which an emulated machine lacks: each NMI from outside counts for ten seconds of it.
static int breaker_cycles(unsigned int kind, struct pt_regs *regs)
{
	static struct perf_event event;

	overflow(&event, NULL, regs);
	return NMI_HANDLED;
}

static noinline void breaker_irqs_off(void)
{
	unsigned long flags;

	overflow = (void *)find("watchdog_overflow_callback");
	if (!overflow || register_nmi_handler(NMI_LOCAL, breaker_cycles, 0, "breaker"))
		panic("there is no detector of hard lockups");
	local_irq_save(flags);
	pr_alert("breaker: interrupts are off\n");
	breaker_spin();
	local_irq_restore(flags);
	calls++;
}

static DECLARE_COMPLETION(breaker_never);

static noinline void breaker_wait(void)
{
	wait_for_completion(&breaker_never);
	calls++;
}

static noinline void breaker_take(void)
{
	mutex_lock(&breaker_mutex);
	mutex_lock(&breaker_mutex);
	calls++;
}

static noinline void breaker_warn(void)
{
	WARN(!zero, "breaker: a number is %lu\n", zero);
	calls++;
}

static noinline void breaker_fill(char *bytes)
{
	unsigned long at;

	for (at = 0; at < many; at++)
		bytes[at] = 'A';
	calls++;
}

static noinline void breaker_smash(void)
{
	char bytes[32];

	breaker_fill(bytes);
	OPTIMIZER_HIDE_VAR(bytes[0]);
	calls++;
}

static noinline unsigned long breaker_recurse(unsigned long depth)
{
	volatile unsigned long words[64];

	words[depth % 64] = depth;
	if (depth > 1000000)
		return depth;
	return breaker_recurse(depth + 1) + words[(depth + 1) % 64];
}

static noinline void breaker_overflow(void)
{
	many = breaker_recurse(zero);
	calls++;
}

// What the scheduler looks for at the end of each stack.
static noinline void breaker_stack_end(void)
{
	*end_of_stack(current) = 0;
	msleep(20);
	calls++;
}

static noinline void breaker_list(void)
{
	static struct list_head list = LIST_HEAD_INIT(list), one, two;

	list_add(&one, &list);
	one.prev = &two;
	list.next = &two;
	list_add(&two, &one);
	list_add(&two, &list);
	calls++;
}

static noinline void breaker_usercopy(char __user *user)
{
	char *memory = kmalloc(64, GFP_KERNEL);

	// Else the compiler finds it first.
	OPTIMIZER_HIDE_VAR(memory);
	if (copy_to_user(user, memory, many))
		pr_alert("breaker: no user\n");
	kfree(memory);
	calls++;
}

struct bytes {
	char eight[8];
	char more[8];
};

static noinline void breaker_copy(void)
{
	static struct bytes bytes;

	memcpy(bytes.eight, "0123456789abcdef0123456789abcdef", many % 32 + 20);
	calls++;
}

// For a kernel with slub_debug=FZPU.
static noinline void breaker_use_freed(void)
{
	unsigned long **freed = kmalloc(192, GFP_KERNEL);
	unsigned long *volatile wrong;
	void *again[64];
	int at;

	kfree(freed);
	OPTIMIZER_HIDE_VAR(freed);
	freed[10] = NULL;
	// Whoever gets it finds it changed.
	for (at = 0; at < ARRAY_SIZE(again); at++)
		again[at] = kmalloc(192, GFP_KERNEL);
	for (at = 0; at < ARRAY_SIZE(again); at++)
		kfree(again[at]);
	wrong = freed[3];
	*wrong = 1;
	calls++;
}

static noinline void breaker_free_twice(void)
{
	void *memory = kmalloc(192, GFP_KERNEL);

	kfree(memory);
	OPTIMIZER_HIDE_VAR(memory);
	kfree(memory);
	calls++;
}

static noinline void breaker_panic(void)
{
	panic("breaker: asked to");
}

// Where the firmware tells the kernel of errors: see `firmware_table` in end.rs.
#define FIRMWARE 0x18000000

// What the firmware would write for a controller of memory.
static noinline void breaker_firmware(void)
{
	u64 *pointer = memremap(FIRMWARE, 2 * PAGE_SIZE, MEMREMAP_WB);
	struct acpi_hest_generic_status *status = (void *)pointer + PAGE_SIZE;
	struct acpi_hest_generic_data *data = (void *)(status + 1);
	struct cper_sec_mem_err *error;

	status->block_status = 1; // an uncorrectable error
	status->error_severity = CPER_SEV_FATAL;
	data->error_severity = CPER_SEV_FATAL;
	data->revision = 0x201;
	data->error_data_length = sizeof(*error);
	memcpy(data->section_type, &CPER_SEC_PLATFORM_MEM, sizeof(data->section_type));
	error = (void *)(data + 1);
	error->validation_bits = CPER_MEM_VALID_PA | CPER_MEM_VALID_ERROR_TYPE;
	error->physical_addr = 0x12345000;
	error->error_type = 3; // of several bits
	status->data_length = sizeof(*data) + sizeof(*error);
	pointer[0] = FIRMWARE + PAGE_SIZE;
	ssleep(60);
	calls++;
}

static const struct {
	const char *word;
	void (*function)(void);
} ways[] = {
	{ "null", breaker_null }, { "bug", breaker_bug }, { "protection", breaker_protection },
	{ "divide", breaker_divide }, { "jump", breaker_jump }, { "interrupt", breaker_interrupt },
	{ "busy", breaker_busy }, { "stall", breaker_stall }, { "retry", breaker_retry }, { "lock-twice", breaker_lock_twice },
	{ "irqs-off", breaker_irqs_off }, { "wait", breaker_wait }, { "take", breaker_take },
	{ "warn", breaker_warn }, { "smash", breaker_smash }, { "overflow", breaker_overflow },
	{ "stack-end", breaker_stack_end }, { "list", breaker_list }, { "copy", breaker_copy },
	{ "use-freed", breaker_use_freed }, { "free-twice", breaker_free_twice }, { "panic", breaker_panic },
	{ "firmware", breaker_firmware },
};

static ssize_t breaker_write(struct file *file, const char __user *user, size_t size, loff_t *at)
{
	char word[32] = "";
	int way;

	if (size >= sizeof(word) || copy_from_user(word, user, size))
		return -EINVAL;
	if (strcmp(word, "usercopy") == 0)
		breaker_usercopy((char __user *)user);
	for (way = 0; way < ARRAY_SIZE(ways); way++)
		if (strcmp(word, ways[way].word) == 0)
			ways[way].function();
	calls++;
	return -ENOENT;
}

static const struct proc_ops breaker_ops = { .proc_write = breaker_write };

static int __init breaker_init(void)
{
	return proc_create("breaker", 0200, NULL, &breaker_ops) ? 0 : -ENOMEM;
}

module_init(breaker_init);
MODULE_DESCRIPTION("ends kernels, for tests");
MODULE_LICENSE("GPL");
