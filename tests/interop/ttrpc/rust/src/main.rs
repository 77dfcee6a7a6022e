// The other side of the interop tests, on the Rust implementation (synchronous form).
//
//	peer server SOCKET
//	peer client SOCKET
use std::collections::HashMap;
use std::os::unix::io::IntoRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::{env, process, thread, time};

use protobuf::Message;
use ttrpc::ttrpc::{KeyValue, Request, Response};
use ttrpc::{Client, Code, MethodHandler, Server, TtrpcContext};

const SERVICE: &str = "interop.Test";

fn die(text: String) -> ! {
    eprintln!("rust peer: {}", text);
    process::exit(1)
}

struct Handler(&'static str);

impl MethodHandler for Handler {
    fn handler(&self, ctx: TtrpcContext, req: Request) -> ttrpc::Result<()> {
        let mut kv = KeyValue::new();
        let mut resp = Response::new();
        if kv.merge_from_bytes(&req.payload).is_err() {
            resp.set_status(ttrpc::get_status(Code::INVALID_ARGUMENT, "malformed"));
            return ttrpc::response_to_channel(ctx.mh.stream_id, resp, ctx.res_tx.clone());
        }
        resp.set_status(ttrpc::get_status(Code::OK, ""));
        match self.0 {
            "Fail" => {
                let mut status = ttrpc::Status::new();
                status.set_code(protobuf::ProtobufEnum::from_i32(kv.key.parse().unwrap()).unwrap());
                status.set_message(kv.value.clone());
                resp.set_status(status);
            }
            "Sleep" => {
                let stream = ctx.mh.stream_id;
                let tx = ctx.res_tx.clone();
                thread::spawn(move || {
                    thread::sleep(time::Duration::from_millis(kv.key.parse().unwrap()));
                    resp.payload = kv.write_to_bytes().unwrap();
                    let _ = ttrpc::response_to_channel(stream, resp, tx);
                });
                return Ok(());
            }
            "Metadata" => {
                let v = ctx.metadata.get(&kv.key).and_then(|v| v.first()).cloned();
                kv.value = v.unwrap_or_default();
            }
            "Big" => {
                kv.value = "b".repeat(kv.key.parse().unwrap());
                kv.key.clear();
            }
            _ => {}
        }
        resp.payload = kv.write_to_bytes().unwrap();
        ttrpc::response_to_channel(ctx.mh.stream_id, resp, ctx.res_tx.clone())
    }
}

fn serve(path: &str) {
    let mut methods: HashMap<String, Box<dyn MethodHandler + Send + Sync>> = HashMap::new();
    for name in ["Echo", "Fail", "Sleep", "Metadata", "Big"].iter() {
        methods.insert(format!("/{}/{}", SERVICE, name), Box::new(Handler(name)));
    }
    // Server::bind() sets SO_REUSEPORT, which kernels refuse on Unix sockets by now.
    let listener = UnixListener::bind(path).unwrap();
    let mut server = Server::new()
        .add_listener(listener.into_raw_fd())
        .unwrap()
        .register_service(methods);
    server.start().unwrap();
    loop {
        thread::park();
    }
}

fn call(c: &Client, method: &str, key: &str, value: &str, timeout: i64) -> ttrpc::Result<KeyValue> {
    let mut kv = KeyValue::new();
    kv.key = key.to_string();
    kv.value = value.to_string();
    let mut req = Request::new();
    req.set_service(SERVICE.to_string());
    req.set_method(method.to_string());
    req.set_payload(kv.write_to_bytes().unwrap());
    req.set_timeout_nano(timeout);
    let mut md = KeyValue::new();
    md.key = "containerd-namespace-ttrpc".to_string();
    md.value = "k8s.io".to_string();
    req.mut_metadata().push(md);
    let resp = c.request(req)?;
    let mut back = KeyValue::new();
    back.merge_from_bytes(&resp.payload).unwrap();
    Ok(back)
}

fn code_of(r: ttrpc::Result<KeyValue>) -> i32 {
    match r {
        Err(ttrpc::Error::RpcStatus(s)) => protobuf::ProtobufEnum::value(&s.get_code()),
        Err(e) => die(format!("not a status: {:?}", e)),
        Ok(_) => 0,
    }
}

fn client(path: &str) {
    let c = Arc::new(Client::new(UnixStream::connect(path).unwrap().into_raw_fd()));
    let r = call(&c, "Echo", "k", "v", 0).unwrap();
    assert!(r.key == "k" && r.value == "v");
    for code in 1..17 {
        let r = call(&c, "Fail", &code.to_string(), "told so", 0);
        assert_eq!(code_of(r), code);
    }
    assert_eq!(code_of(call(&c, "Nothing", "", "", 0)), 12);
    let r = call(&c, "Metadata", "containerd-namespace-ttrpc", "", 0).unwrap();
    assert_eq!(r.value, "k8s.io");
    // Its own clock may be first; that is no status then.
    assert!(call(&c, "Sleep", "60000", "", 50_000_000).is_err());
    assert_eq!(call(&c, "Big", "4000000", "", 0).unwrap().value.len(), 4_000_000);
    assert_eq!(code_of(call(&c, "Big", "5000000", "", 0)), 8);
    let threads: Vec<_> = (0..50)
        .map(|i| {
            let c = c.clone();
            thread::spawn(move || {
                let ms = (50 - i).to_string();
                assert_eq!(call(&c, "Sleep", &ms, "", 0).unwrap().key, ms);
            })
        })
        .collect();
    for t in threads {
        t.join().unwrap();
    }
    println!("ok");
}

fn main() {
    let args: Vec<String> = env::args().collect();
    match args.iter().map(|s| s.as_str()).collect::<Vec<_>>()[..] {
        [_, "server", path] => serve(path),
        [_, "client", path] => client(path),
        _ => die("usage: peer server|client SOCKET".to_string()),
    }
}
