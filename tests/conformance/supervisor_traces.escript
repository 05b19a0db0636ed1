#!/usr/bin/env escript
%% Runs scenarios on the real `supervisor` of Erlang/OTP and prints what happens, in order, as text.
%%
%% Called by tests/conformance/record.py: `escript supervisor_traces.escript SCENARIOS`, where SCENARIOS is a file of
%% terms `{scenario, Name, Tree, Steps}` (scenario.py says what is in them). It prints `otp VERSION`, then for each
%% scenario `scenario NAME` and the lines of its trace.
%%
%% Order is by cause: a line is written, synchronously, before its writer goes on, and the next step begins only when
%% the whole tree has come to rest.

-module(supervisor_traces).
-mode(compile).
-export([main/1, start_supervisor/1, start_worker/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-define(POLL, 3).   % ms between two looks at the tree
-define(LOOKS, 3).  % looks in a row that must find it at rest: an exit signal may be on its way between two processes

main([File]) ->
    logger:set_primary_config(level, none),
    process_flag(trap_exit, true),
    {ok, Scenarios} = file:consult(File),
    io:format("otp ~s~n", [otp_version()]),
    lists:foreach(fun run/1, Scenarios).

otp_version() ->
    Release = erlang:system_info(otp_release),
    {ok, Version} = file:read_file(filename:join([code:root_dir(), "releases", Release, "OTP_VERSION"])),
    string:trim(Version).

%% -- the trace: tables of the scenario that runs ----------------------------------------------------------------------

open_tables() ->
    trace = ets:new(trace, [named_table, public, ordered_set]),  % {Order, Line}
    inits = ets:new(inits, [named_table, public]),               % {Id, how often it was started}
    actors = ets:new(actors, [named_table, public]),             % {Pid}: every process of the tree, ended ones included
    current = ets:new(current, [named_table, public]),           % {Id, Pid of the last one with this id}
    busy = ets:new(busy, [named_table, public]).                 % {Pid} in a slow init or terminate

close_tables() ->
    lists:foreach(fun ets:delete/1, [trace, inits, actors, current, busy]).

note(Format, Arguments) ->
    ets:insert(trace, {erlang:unique_integer([monotonic]), io_lib:format(Format, Arguments)}).

enter(Id) ->
    ets:insert(actors, {self()}),
    ets:insert(current, {Id, self()}).

alive(Id) ->
    [{Id, Pid}] = ets:lookup(current, Id),
    is_process_alive(Pid) orelse error({scenario_addresses_the_dead, Id}),
    Pid.

%% -- a scenario -------------------------------------------------------------------------------------------------------

run({scenario, Name, Tree, Steps}) ->
    open_tables(),
    note("> start", []),
    case start_supervisor(Tree#{root => true}) of
        {ok, Top} ->
            settle([]),
            note("= ok", []),
            lists:keymember(pause, 1, Steps) andalso await_new_second(erlang:monotonic_time(second)),
            lists:foldl(fun(Step, Since) -> step(Top, Step, Since) end, now_ms(), Steps),
            is_process_alive(Top) andalso survivors(Top, top),
            print(Name),
            finish(Top);
        {error, {shutdown, {failed_to_start_child, _, _}}} ->
            note("= failed", []),
            print(Name);
        {error, _} ->
            note("= rejected", []),
            print(Name)
    end,
    close_tables(),
    forget_exits().

print(Name) ->
    io:format("scenario ~s~n", [Name]),
    [io:format("~s~n", [Line]) || {_, Line} <- ets:tab2list(trace)].

%% OTP counts restarts in whole seconds of the clock: what waits begins with a new one.
await_new_second(Old) ->
    case erlang:monotonic_time(second) of
        Old -> timer:sleep(1), await_new_second(Old);
        _ -> ok
    end.

now_ms() -> erlang:monotonic_time(millisecond).

%% Perform a step that began at the returned time; a pause is counted from the time at which the step before began.
step(Top, {pause, Ms}, Since) ->
    note("> pause ~b", [Ms]),
    await(fun() -> now_ms() >= Since + Ms end),
    settled(Top, []),
    Since + Ms;
step(Top, {Text, Acts}, _Since) ->
    Since = now_ms(),
    note("> ~s", [Text]),
    settled(Top, perform(Acts)),
    Since.

%% Let the tree come to rest; then write down whether it has ended, and the results of the calls.
settled(Top, Calls) ->
    Results = settle(Calls),
    receive
        {'EXIT', Top, Reason} -> note("ended ~w", [Reason])
    after 0 -> ok
    end,
    [note("= ~s", [Result]) || Result <- Results].

%% Acts are one act; or several that find a supervisor suspended, so that it sees them only when all have happened; or
%% one that makes an actor slow, and others that happen meanwhile. Returns the calls that were made.
perform({one, {Act, _Supervisor}}) ->
    act(Act);
perform({together, Acts}) ->
    Suspended = lists:usort([alive(Supervisor) || {_, Supervisor} <- Acts]),
    lists:foreach(fun sys:suspend/1, Suspended),
    Calls = lists:flatmap(fun act_and_arrive/1, Acts),
    lists:foreach(fun sys:resume/1, Suspended),
    Calls;
perform({meanwhile, [{First, _} | Others]}) ->
    Calls = act(First),
    await(fun() -> lists:any(fun({Pid}) -> is_process_alive(Pid) end, ets:tab2list(busy)) end),
    {Between, [{Last, _}]} = lists:split(length(Others) - 1, Others),
    Calls ++ lists:flatmap(fun act_and_arrive/1, Between) ++ act(Last).

%% Act, and wait until what follows from it waits in the mailbox of the supervisor.
act_and_arrive({Act, Supervisor}) ->
    Pid = alive(Supervisor),
    Before = queued(Pid),
    Calls = act(Act),
    await(fun() -> queued(Pid) > Before end),
    Calls.

queued(Pid) ->
    {message_queue_len, Length} = process_info(Pid, message_queue_len),
    Length.

act({crash, Id}) -> gen_server:cast(alive(Id), {stop, crash}), [];
act({exit, Id, Reason}) -> gen_server:cast(alive(Id), {stop, Reason}), [];
act({kill, Id}) -> exit(alive(Id), kill), [];
act({stop, Id}) -> exit(alive(Id), shutdown), [];
act(Call) ->
    Driver = self(),
    Ref = make_ref(),
    Pids = [alive(element(2, Call)) | [alive(Id) || {terminate_dynamic, _, Id} <- [Call]]],
    spawn(fun() -> Driver ! {Ref, call(Call, Pids)} end),
    [Ref].

call({start_child, _, Child}, [Sup]) -> outcome(supervisor:start_child(Sup, child_spec(Child)));
call({start_dynamic, _, Worker}, [Sup]) -> outcome(supervisor:start_child(Sup, [Worker]));
call({terminate_child, _, Id}, [Sup]) -> outcome(supervisor:terminate_child(Sup, Id));
call({terminate_dynamic, _, _}, [Sup, Pid]) -> outcome(supervisor:terminate_child(Sup, Pid));
call({restart_child, _, Id}, [Sup]) -> outcome(supervisor:restart_child(Sup, Id));
call({delete_child, _, Id}, [Sup]) -> outcome(supervisor:delete_child(Sup, Id));
call({which_children, _}, [Sup]) -> children(Sup);
call({count_children, _}, [Sup]) ->
    lists:join(", ", [io_lib:format("~s ~b", [Kind, N]) || {Kind, N} <- supervisor:count_children(Sup)]).

outcome(ok) -> "ok";
outcome({ok, _}) -> "ok";
outcome({error, {already_started, _}}) -> "refused already_started";
outcome({error, Word}) when Word =:= already_present; Word =:= running; Word =:= restarting; Word =:= not_found ->
    io_lib:format("refused ~s", [Word]);
outcome({error, _}) -> "failed".

%% The children in the order of their start (OTP lists the last one first); those of a simple_one_for_one supervisor
%% have no ids and no order: by name.
children(Sup) ->
    Listed = supervisor:which_children(Sup),
    Shown = [io_lib:format("~s ~s", [name(Id, Child), state(Child)]) || {Id, Child, _, _} <- Listed],
    case Listed of
        [] -> "none";
        [{undefined, _, _, _} | _] -> lists:join(", ", lists:sort(lists:map(fun lists:flatten/1, Shown)));
        _ -> lists:join(", ", lists:reverse(Shown))
    end.

name(undefined, Pid) when is_pid(Pid) -> hd([Id || {Id, Of} <- ets:tab2list(current), Of =:= Pid]);
name(undefined, _) -> '?';
name(Id, _) -> Id.

state(undefined) -> "stopped";
state(restarting) -> "restarting";
state(Pid) when is_pid(Pid) -> "running".

%% End what is left, so that no process of this scenario meets the next one.
finish(Top) ->
    Ended = monitor(process, Top),
    unlink(Top),
    exit(Top, shutdown),
    receive {'DOWN', Ended, _, _, _} -> ok end,
    [error({left_alive, Pid}) || {Pid} <- ets:tab2list(actors), is_process_alive(Pid)].

survivors(Sup, Id) ->
    note("survivors ~s: ~s", [Id, children(Sup)]),
    Inner = [{Child, Pid} || {Child, Pid, supervisor, _} <- supervisor:which_children(Sup), is_pid(Pid)],
    [survivors(Pid, Child) || {Child, Pid} <- lists:reverse(Inner)].

forget_exits() ->
    receive {'EXIT', _, _} -> forget_exits() after 0 -> ok end.

%% -- rest -------------------------------------------------------------------------------------------------------------

await(Condition) ->
    case Condition() of
        true -> ok;
        false -> timer:sleep(1), await(Condition)
    end.

%% Wait for the results of the calls, and then until every process of the tree waits for a message.
settle(Calls) ->
    Results = [receive {Ref, Result} -> Result end || Ref <- Calls],
    come_to_rest(?LOOKS),
    Results.

come_to_rest(0) -> ok;
come_to_rest(Looks) ->
    Lines = ets:info(trace, size),
    timer:sleep(?POLL),
    Rests = lists:all(fun({Pid}) -> rests(Pid) end, ets:tab2list(actors)),
    case Rests andalso ets:info(trace, size) =:= Lines of
        true -> come_to_rest(Looks - 1);
        false -> come_to_rest(?LOOKS)
    end.

rests(Pid) ->
    case process_info(Pid, [current_function, status, message_queue_len]) of
        undefined -> true;
        [{current_function, {gen_server, loop, _}}, {status, waiting}, {message_queue_len, 0}] -> true;
        _ -> false
    end.

%% -- the tree ---------------------------------------------------------------------------------------------------------

start_supervisor(Tree) -> supervisor:start_link(?MODULE, {supervisor, Tree}).
start_worker(Worker) -> gen_server:start_link(?MODULE, {worker, Worker}, []).

child_spec(#{id := Id, type := Type} = Child) ->
    Start = case Type of
        supervisor -> start_supervisor;
        worker -> start_worker
    end,
    Spec = maps:with([restart, shutdown, significant, type], Child),
    Spec#{id => Id, start => {?MODULE, Start, [Child]}}.

%% Init of supervisors and workers alike. The root's is not written down: OTP calls it before it looks at the specs.
init({supervisor, #{id := Id, flags := Flags} = Tree}) ->
    enter(Id),
    maps:is_key(root, Tree) orelse note("init ~s", [Id]),
    {ok, {Flags, specs(Tree)}};
init({worker, #{id := Id, inits := Inits} = Worker}) ->
    process_flag(trap_exit, true),
    enter(Id),
    note("init ~s", [Id]),
    Nth = ets:update_counter(inits, Id, 1, {Id, 0}),
    {Outcome, Ms} = case Nth =< length(Inits) of
        true -> lists:nth(Nth, Inits);
        false -> {ok, 0}
    end,
    take(Ms),
    case Outcome of
        ok -> {ok, Worker};
        fail -> note("start failed ~s", [Id]), {stop, init_failed}
    end.

specs(#{flags := #{strategy := simple_one_for_one}, template := Template}) ->
    [Template#{id => dynamic, start => {?MODULE, start_worker, []}}];
specs(#{children := Children}) ->
    [child_spec(Child) || Child <- Children].

%% -- the worker -------------------------------------------------------------------------------------------------------

handle_call(_, _, Worker) -> {reply, ok, Worker}.
handle_cast({stop, Reason}, Worker) -> {stop, Reason, Worker}.
handle_info(_, Worker) -> {noreply, Worker}.

terminate(Reason, #{id := Id, terminate := Behaviour}) ->
    note("terminate ~s ~w", [Id, Reason]),
    case Behaviour of
        crash -> exit(crash_in_terminate);
        Ms -> take(Ms)
    end.

take(0) -> ok;
take(Time) ->
    ets:insert(busy, {self()}),
    timer:sleep(Time),
    ets:delete(busy, self()).
