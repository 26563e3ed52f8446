// A watchdog that is about to bite a second after it is loaded: it calls what is set for that, the governor.

#include <linux/module.h>
#include <linux/timer.h>
#include <linux/watchdog.h>

static int dog_start(struct watchdog_device *dog)
{
	return 0;
}

static int dog_set_pretimeout(struct watchdog_device *dog, unsigned int seconds)
{
	return 0;
}

static const struct watchdog_info info = {
	.options = WDIOF_SETTIMEOUT | WDIOF_PRETIMEOUT, .identity = "breaker",
};
static const struct watchdog_ops ops = {
	.owner = THIS_MODULE, .start = dog_start, .stop = dog_start, .set_pretimeout = dog_set_pretimeout,
};
static struct watchdog_device dog = { .info = &info, .ops = &ops, .timeout = 60, .pretimeout = 30 };

static void dog_growls(struct timer_list *timer)
{
	watchdog_notify_pretimeout(&dog);
}

static DEFINE_TIMER(timer, dog_growls);

static int __init dog_init(void)
{
	int error = watchdog_register_device(&dog);

	if (!error)
		mod_timer(&timer, jiffies + 3 * HZ);
	return error;
}

module_init(dog_init);
MODULE_DESCRIPTION("a watchdog for tests");
MODULE_LICENSE("GPL");
