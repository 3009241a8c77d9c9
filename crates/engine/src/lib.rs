//! PKCS#11 mechanisms on AWS-LC: the only caller of aws-lc-sys.
