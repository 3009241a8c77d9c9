//! A client that keeps to no rules.

use super::*;
use futures_util::{SinkExt, StreamExt};
use mayfly_ledger_client::tls;
use mayfly_protocol::sync::{Bye, EXPORTER_LABEL, FromClient, Hello, PATH, SUBPROTOCOL, hello_message};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

pub struct Raw {
    pub socket: WebSocketStream<TlsStream<TcpStream>>,
    pub exporter: [u8; 32],
    pub nonce: [u8; 32],
}

impl Raw {
    pub async fn tls(world: &World, address: SocketAddr) -> TlsStream<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap(); // so that a client that reads nothing is full soon
        let stream = socket.connect(address).await.unwrap();
        let config = tls::client_config(&world.gateway_keys[0]).unwrap();
        TlsConnector::from(Arc::new(config)).connect(tls::server_name(), stream).await.unwrap()
    }

    pub async fn upgrade(
        stream: TlsStream<TcpStream>,
        path: &str,
        protocol: &'static str,
    ) -> Result<WebSocketStream<TlsStream<TcpStream>>, tokio_tungstenite::tungstenite::Error> {
        let mut request = format!("wss://localhost{path}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static(protocol));
        Ok(tokio_tungstenite::client_async(request, stream).await?.0)
    }

    pub async fn open(world: &World, address: SocketAddr) -> Raw {
        let stream = Raw::tls(world, address).await;
        let exporter = stream.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, Some(&[])).unwrap();
        let mut socket = Raw::upgrade(stream, PATH, SUBPROTOCOL).await.unwrap();
        let Some(Ok(Message::Binary(frame))) = socket.next().await else { panic!("no challenge") };
        let Some(FromGateway::Challenge { nonce, .. }) = FromGateway::decode(&frame).unwrap() else { panic!() };
        Raw { socket, exporter, nonce }
    }

    pub fn hello(&self, world: &World, key: &Key, exporter: &[u8; 32]) -> Hello {
        let message = hello_message(&world.network, &world.gateway_keys[0], exporter, &self.nonce, &key.public());
        Hello {
            version: 1,
            network: world.network,
            tip: mayfly_protocol::Head::default(),
            witnessed: 0,
            key: Verifier(key.public()),
            signature: EntrySigner::sign(key, &message).unwrap(),
        }
    }

    pub async fn admitted(world: &World, address: SocketAddr) -> Raw {
        Raw::admitted_as(world, address, &world.admin).await
    }

    pub async fn admitted_as(world: &World, address: SocketAddr, key: &Key) -> Raw {
        let mut raw = Raw::open(world, address).await;
        let hello = raw.hello(world, key, &raw.exporter.clone());
        raw.send(&FromClient::Hello(hello)).await;
        assert!(matches!(raw.next().await, Some(FromGateway::Welcome { .. })));
        raw
    }

    pub async fn send(&mut self, message: &FromClient) {
        self.frame(Message::binary(message.encode())).await;
    }

    pub async fn frame(&mut self, frame: Message) {
        let _ = self.socket.send(frame).await;
    }

    pub async fn next(&mut self) -> Option<FromGateway> {
        loop {
            match timeout(SOON, self.socket.next()).await.expect("the gateway says something") {
                Some(Ok(Message::Binary(frame))) => return FromGateway::decode(&frame).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
    }

    /// The reason of the good-bye.
    pub async fn bye(&mut self) -> Option<Bye> {
        loop {
            match self.next().await? {
                FromGateway::Bye { reason, .. } => return Some(reason),
                _ => continue,
            }
        }
    }
}

pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
