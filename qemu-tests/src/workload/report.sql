-- Long enough to be at it when the system crashes.
set work_mem = '128MB';
select c.city, e.agent, count(*), sum(e.amount), string_agg(e.token::text, ',') from events e join customers c on c.id = e.customer
    group by c.city, e.agent order by 4 desc;
select count(*) from documents a join documents b on md5(a.body) < md5(b.body) and a.part = b.part;
