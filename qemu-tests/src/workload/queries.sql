-- Reads every table and most indexes, writes, sorts and joins.
select pg_prewarm('documents'), pg_prewarm('customers'), pg_prewarm('events');
select relname, pg_prewarm(oid) from pg_class where relkind = 'i' and relname like any ('{events%,customers%,documents%}');
update customers set preferences = preferences || '{"seen": true}' where id % 7 = 0;
insert into events select id + 10000000, at + interval '1 year', customer, kind, amount, address, gen_random_uuid(), agent
    from events where id % 40 = 0;
select kind, count(*), sum(amount), percentile_cont(0.5) within group (order by amount) from events group by kind;
select path, part from documents where id % 4 = 0 and to_tsvector('english', body) @@ to_tsquery('english', 'memory & kernel') limit 50;
